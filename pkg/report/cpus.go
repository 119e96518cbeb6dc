package report

import (
	"fmt"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// jsonCPUs is what the guest's CPUs were doing; it is there if they were looked at.
type jsonCPUs struct {
	Looks []jsonLook `json:"looks"`
	Error string     `json:"error,omitempty"` // why there is none, or not of all of them
}

type jsonLook struct {
	When run.Moment `json:"when"`
	At   float64    `json:"at_seconds"` // since the run's start
	CPUs []jsonCPU  `json:"cpus"`
}

type jsonCPU struct {
	Index     int      `json:"index"`
	Online    bool     `json:"online"`
	Idle      bool     `json:"idle"`
	NrRunning uint32   `json:"nr_running"`
	Clock     float64  `json:"clock_seconds"`
	PID       int32    `json:"pid"`
	Comm      string   `json:"comm"`
	Policy    string   `json:"policy"`
	SCX       *jsonSCX `json:"scx,omitempty"`
}

type jsonSCX struct {
	Flags     string `json:"flags"`
	NrRunning uint32 `json:"nr_running"`
}

func cpusJSON(r *run.Result) *jsonCPUs {
	if len(r.Looks) == 0 && r.LookError == nil {
		return nil
	}
	j := &jsonCPUs{Looks: []jsonLook{}}
	if r.LookError != nil {
		j.Error = r.LookError.Error()
	}
	for _, l := range r.Looks {
		look := jsonLook{l.When, l.At.Seconds(), []jsonCPU{}}
		for _, c := range l.CPUs {
			look.CPUs = append(look.CPUs, cpuJSON(c))
		}
		j.Looks = append(j.Looks, look)
	}
	return j
}

func cpuJSON(c introspect.CPU) jsonCPU {
	j := jsonCPU{c.Index, c.Online, c.Idle, c.NrRunning, c.Clock.Seconds(), c.PID, c.Comm, c.Policy.String(), nil}
	if c.SCX != nil {
		j.SCX = &jsonSCX{fmt.Sprintf("0x%x", c.SCX.Flags), c.SCX.NrRunning}
	}
	return j
}

// moments are how a sentence goes on that says when the CPUs were looked at.
var moments = map[run.Moment]string{
	run.AskedToStop: "when it was asked to stop",
	run.Stalled:     "when its scenario had stalled",
	run.Stopped:     "when it had stopped",
}

// cpusText is a paragraph for each look: a line for each CPU that runs something, and one for all others.
func cpusText(r *run.Result) string {
	var b strings.Builder
	for _, l := range r.Looks {
		fmt.Fprintf(&b, "\nwhat each of the guest's CPUs was doing %s, after %v:\n", moments[l.When],
			l.At.Round(time.Millisecond))
		var idle, offline []int
		for _, c := range l.CPUs {
			switch {
			case !c.Online:
				offline = append(offline, c.Index)
			case c.Idle && c.NrRunning == 0:
				idle = append(idle, c.Index)
			default:
				fmt.Fprintf(&b, "  CPU %-3d %s\n", c.Index, cpuText(c))
			}
		}
		if len(idle) > 0 {
			fmt.Fprintf(&b, "  idle    CPU %s\n", affinity.Format(idle))
		}
		if len(offline) > 0 {
			fmt.Fprintf(&b, "  offline CPU %s\n", affinity.Format(offline))
		}
	}
	return b.String()
}

func cpuText(c introspect.CPU) string {
	task := "idle" // with a task that waits for it
	if !c.Idle {
		task = fmt.Sprintf("%s, process %d", Printable(c.Comm), c.PID)
		if c.Policy != 0 {
			task += ", policy " + c.Policy.String()
		}
	}
	s := fmt.Sprintf("%s; %d runnable; clock %.6f s", task, c.NrRunning, c.Clock.Seconds())
	if c.SCX != nil {
		s += fmt.Sprintf("; sched_ext: %d runnable, flags 0x%x", c.SCX.NrRunning, c.SCX.Flags)
	}
	return s
}
