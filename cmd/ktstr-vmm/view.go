package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

const (
	// flushLimit is how long a reader of our output that takes nothing can hold us up.
	flushLimit = 5 * time.Second
	// outputLimit is how much of a command's output waits for a slow reader of ours: then the
	// ring fills, and the command waits.
	outputLimit = 4 << 20 // bytes
)

// view is what a user sees of a run while it goes on, and when it is over.
type view interface {
	message(at time.Duration, m shm.Message)
	finish(r *run.Result) error
}

// liveView shows each message in a line, and a summary where it is wanted.
type liveView struct {
	to      io.Writer
	summary bool
	out     *report.Stream
	live    *report.Live
}

func newLiveView(to io.Writer, summary bool) *liveView {
	out := report.NewStream(to)
	return &liveView{to, summary, out, report.NewLive(out)}
}

func (v *liveView) message(at time.Duration, m shm.Message) { v.live.Message(at, m) }

func (v *liveView) finish(r *run.Result) error {
	v.live.Close()
	if v.summary {
		_ = report.Text(v.out, r, wantsColour(v.to)) // a Stream takes all
	}
	return v.out.Close(flushLimit)
}

// commandView passes on what a guest's command writes, as if it ran here. Only an ending that is
// not the command's own gets a summary.
type commandView struct {
	to             io.Writer // stderr
	stdout, stderr *report.Stream
	console        bool // whether the summary shows the console's end
}

func newCommandView(stdout, stderr io.Writer, console bool) *commandView {
	return &commandView{stderr, report.NewBoundedStream(stdout, outputLimit, flushLimit), report.NewBoundedStream(stderr, outputLimit, flushLimit), console}
}

func (v *commandView) message(_ time.Duration, m shm.Message) {
	switch {
	case !m.CRCOK:
	case m.Type == shm.Stdout:
		_, _ = v.stdout.Write(m.Payload) // its error comes with Close
	case m.Type == shm.Stderr:
		_, _ = v.stderr.Write(m.Payload)
	}
}

// finish shows the summary behind all of the output: both may go to one place.
func (v *commandView) finish(r *run.Result) error {
	err := v.stdout.Close(flushLimit)
	if r.Outcome != run.Exited && r.Outcome != run.Failed {
		shown := *r
		if !v.console {
			shown.Console = nil
		}
		_ = report.Text(v.stderr, &shown, wantsColour(v.to))
		if r.Outcome == run.TimedOut {
			fmt.Fprint(v.stderr, timeoutHints(r))
		}
	}
	if r.Outcome == run.Exited && r.ExitCode == killed && bytes.Contains(r.Console, []byte(outOfMemory)) {
		fmt.Fprintln(v.stderr, "\nThe guest's kernel ran out of memory and killed the command; try more --memory.")
	}
	return errors.Join(err, v.stderr.Close(flushLimit))
}

// timeoutHints says what else can be behind a timeout than the command.
func timeoutHints(r *run.Result) (hints string) {
	if r.Ring.ByType[shm.ScenarioStart.String()] == 0 {
		hints = "\nThe command had not started. \"ktstr-vmm doctor\" says whether this host's KVM is fast enough for Linux; --verbose shows how far the kernel came.\n"
	}
	if r.Accelerator == (qemu.Backend{}).Name() {
		hints += "\nThe guest ran on the emulator, where its kernel and the command take several times as long as on KVM: try more --timeout.\n"
	}
	return hints
}

const (
	killed      = 137                             // 128 + SIGKILL
	outOfMemory = "Out of memory: Killed process" // Linux, mm/oom_kill.c
)
