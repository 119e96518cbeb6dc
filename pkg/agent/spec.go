// Package agent is the guest's side of a run with a Linux kernel: the program that is PID 1. It
// maps the ring, sets up what programs expect, runs the command and reports through the ring.
package agent

import "encoding/json"

// SpecPath is where the agent finds what to do.
const SpecPath = "/ktstr/spec.json"

// Spec is what the host wants of a guest.
type Spec struct {
	Args []string `json:"args"` // the command; its program is a path in the guest
	Env  []string `json:"env"`
	Dir  string   `json:"dir"` // the command's working directory; made where it is missing
	TTY  bool     `json:"tty"` // the command gets a controlling terminal

	// OneOutput makes the command's stdout and stderr one, so that their order is kept.
	OneOutput bool `json:"one_output"`

	// Scheduler is the scheduler under test and its arguments; empty: the kernel's own.
	Scheduler []string `json:"scheduler"`
}

// Encode returns the spec as SpecPath holds it.
func (s Spec) Encode() ([]byte, error) { return json.Marshal(s) }
