package report

import (
	"fmt"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

type jsonScheduler struct {
	States     []jsonSchedulerState  `json:"states"`
	OutputTail string                `json:"output_tail"`
	Dump       string                `json:"dump"`
	Omitted    *jsonSchedulerOmitted `json:"omitted,omitempty"`
}

// jsonSchedulerState is a state of sched_ext. The times are since the run's start, and since the guest's boot.
type jsonSchedulerState struct {
	At         float64 `json:"at_seconds"`
	Guest      float64 `json:"guest_seconds"`
	Noticed    float64 `json:"kernel_seconds,omitempty"` // when the kernel's log said so
	State      string  `json:"state"`
	Ops        string  `json:"ops"`
	Reason     string  `json:"reason"`
	PID        int32   `json:"pid"`
	EnableSeq  uint64  `json:"enable_seq"`
	HotplugSeq uint64  `json:"hotplug_seq"`
	Rejected   uint64  `json:"nr_rejected"`
	SwitchAll  bool    `json:"switch_all"`
}

// jsonSchedulerOmitted counts what the report has no room for; it is there where any is not 0.
type jsonSchedulerOmitted struct {
	States      uint64 `json:"states"`
	OutputBytes uint64 `json:"output_bytes"`
	DumpBytes   uint64 `json:"dump_bytes"`
}

type jsonDumpRequest struct {
	At  float64 `json:"at_seconds"`
	Why string  `json:"why"`
}

func schedulerOf(r *run.Result) *jsonScheduler {
	s := r.Scheduler
	if s == nil {
		return nil
	}
	j := &jsonScheduler{States: []jsonSchedulerState{}, OutputTail: string(s.Output), Dump: string(s.Dump)}
	for _, t := range s.States {
		j.States = append(j.States, jsonSchedulerState{
			At: t.At.Seconds(), Guest: t.Time.Seconds(), Noticed: t.Noticed.Seconds(), State: t.Phase.String(), Ops: t.Ops,
			Reason: t.Reason, PID: t.PID, EnableSeq: t.EnableSeq, HotplugSeq: t.HotplugSeq, Rejected: t.Rejected,
			SwitchAll: t.SwitchAll,
		})
	}
	if s.Omitted != (run.SchedulerOmitted{}) {
		omitted := jsonSchedulerOmitted(s.Omitted)
		j.Omitted = &omitted
	}
	return j
}

// describeState says in a line what a state of sched_ext is.
func describeState(s shm.SchedulerState) string {
	text := s.Phase.String()
	if s.Ops != "" {
		text += fmt.Sprintf(" %q", s.Ops)
	}
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}

// What a summary shows of the scheduler where something went wrong.
const (
	shownStates = 16
	shownOutput = 20 // lines at the end
	shownDump   = 40 // lines at the beginning
)

// schedulerText says what is known of the scheduler under test: its states, and where something went wrong its last
// words and how the dump begins.
func schedulerText(s *run.Scheduler, good bool) string {
	if s == nil {
		return ""
	}
	var b strings.Builder
	name := "scheduler"
	for _, t := range s.States[max(0, len(s.States)-shownStates):] {
		fmt.Fprintf(&b, "  %-11s %9.3fs  %s\n", name, t.At.Seconds(), Printable(describeState(t.SchedulerState)))
		name = ""
	}
	if good {
		return b.String()
	}
	if lines := textLines(s.Output); len(lines) > 0 {
		fmt.Fprintf(&b, "\nend of the scheduler's output:\n%s\n", shown(lines[max(0, len(lines)-shownOutput):]))
	}
	if lines := textLines(s.Dump); len(lines) > 0 {
		fmt.Fprintf(&b, "\nsched_ext's dump:\n%s\n", shown(lines[:min(len(lines), shownDump)]))
		if more := len(lines) - shownDump; more > 0 {
			fmt.Fprintf(&b, "  … and %d lines more, in the JSON report\n", more)
		}
	}
	return b.String()
}

// shown returns lines as a summary has them: none is longer than what is shown of a payload.
func shown(lines []string) string {
	short := make([]string, 0, len(lines))
	for _, line := range lines {
		if len(line) > maxPayload {
			line = fmt.Sprintf("%s… (%d bytes)", line[:maxPayload], len(line))
		}
		short = append(short, line)
	}
	return indent(PrintableLines(strings.Join(short, "\n")))
}

func textLines(p []byte) []string {
	text := strings.TrimRight(strings.ReplaceAll(string(p), "\r\n", "\n"), "\r\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// schedulerSaid is all that is known of the scheduler under test, as text.
func schedulerSaid(r *run.Result) string {
	s := r.Scheduler
	if s == nil {
		return ""
	}
	var b strings.Builder
	for _, t := range s.States {
		fmt.Fprintf(&b, "%v %s\n", t.At.Round(time.Millisecond), describeState(t.SchedulerState))
	}
	for _, part := range []struct {
		name string
		text []byte
	}{{"output", s.Output}, {"dump", s.Dump}} {
		if len(part.text) > 0 {
			fmt.Fprintf(&b, "\n%s:\n%s", part.name, part.text)
		}
	}
	return b.String()
}
