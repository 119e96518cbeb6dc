package run

import (
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Scheduler is what a guest says of the scheduler under test.
type Scheduler struct {
	States []SchedulerState // the first ones, and the last
	Output []byte           // the end of what it wrote, stdout and stderr in one
	Dump   []byte           // the end of sched_ext's dumps, one after the other

	Omitted SchedulerOmitted
}

// SchedulerState is a state of sched_ext, and when the host read it, since StartedAt.
type SchedulerState struct {
	At time.Duration
	shm.SchedulerState
}

// SchedulerOmitted counts what a Scheduler does not keep.
type SchedulerOmitted struct {
	States      uint64 // before the last
	OutputBytes uint64 // before Output
	DumpBytes   uint64 // before Dump, and what the guest cut
}

// What a Scheduler keeps at most.
const (
	maxSchedulerStates = 64
	maxSchedulerOutput = 64 << 10
	maxSchedulerDump   = 256 << 10
)

// schedulerCollector puts what the messages say of the scheduler under test into a result.
type schedulerCollector struct {
	r      *Result
	since  func() time.Duration
	output *tail
	dump   *tail
	cut    uint64 // bytes of dumps, by the guest
	reason string // why it is gone
}

func newSchedulerCollector(r *Result, since func() time.Duration) *schedulerCollector {
	return &schedulerCollector{r: r, since: since, output: &tail{limit: maxSchedulerOutput},
		dump: &tail{limit: maxSchedulerDump}}
}

func (c *schedulerCollector) register(x *monitor.Mux) {
	x.HandleFunc(shm.SchedulerChange, c.change)
	x.HandleFunc(shm.SchedulerDump, c.dumped)
	x.HandleFunc(shm.SchedulerOutput, c.wrote)
}

// scheduler returns the result's part, which is there from the first message on.
func (c *schedulerCollector) scheduler() *Scheduler {
	if c.r.Scheduler == nil {
		c.r.Scheduler = &Scheduler{}
	}
	return c.r.Scheduler
}

func (c *schedulerCollector) change(m shm.Message) monitor.Verdict {
	state, err := shm.DecodeSchedulerState(m.Payload)
	if err != nil {
		return monitor.Reject(err)
	}
	s, now := c.scheduler(), SchedulerState{c.since(), state}
	if len(s.States) < maxSchedulerStates {
		s.States = append(s.States, now)
	} else {
		s.States[maxSchedulerStates-1] = now
		s.Omitted.States++
	}
	if state.Phase.Ends() {
		c.reason = strings.Join(strings.Fields(state.Reason), " ") // one line
	}
	return monitor.Continue
}

func (c *schedulerCollector) dumped(m shm.Message) monitor.Verdict {
	d, err := shm.DecodeDumpPiece(m.Payload)
	if err != nil {
		return monitor.Reject(err)
	}
	c.scheduler()
	c.cut += uint64(d.Omitted)
	_, _ = c.dump.Write(d.Text) // never fails
	return monitor.Continue
}

func (c *schedulerCollector) wrote(m shm.Message) monitor.Verdict {
	o, err := shm.DecodeOutputPiece(m.Payload)
	if err != nil {
		return monitor.Reject(err)
	}
	c.scheduler()
	_, _ = c.output.Write(o.Text) // never fails
	return monitor.Continue
}

// finish fills in the rest of the result's part.
func (c *schedulerCollector) finish() {
	s := c.r.Scheduler
	if s == nil {
		return
	}
	s.Output, s.Omitted.OutputBytes = c.output.bytes()
	s.Dump, s.Omitted.DumpBytes = c.dump.bytes()
	s.Omitted.DumpBytes += c.cut
	if c.r.SchedulerExit == nil && c.reason != "" { // the machine stopped before the code came
		c.r.SchedulerExit = &SchedulerExit{Reason: c.reason}
	}
}

// Dumps says when the guest is asked for a dump of its scheduler's state.
type Dumps struct {
	AtSoftDeadline bool  // before it is asked to stop
	Stall          Stall // whenever there is one
}

// DumpRequest is a dump that was asked for.
type DumpRequest struct {
	At  time.Duration // since StartedAt
	Why string        // a sentence without its end
}

// maxDumpRequests is how many there are in a run, at most; others are counted.
const maxDumpRequests = 64

// requestDump asks the guest for a dump, by its control byte. Whatever else tells what the guest was doing at that
// moment belongs here.
func (r *run) requestDump(why string) {
	if len(r.result.DumpRequests) == maxDumpRequests {
		r.result.Omitted.DumpRequests++
		return
	}
	r.cfg.Log.Info("the guest is asked for a dump of its scheduler's state", zap.String("because", why))
	r.result.DumpRequests = append(r.result.DumpRequests, DumpRequest{r.since(), why})
	r.history.event(EventDump, why)
	r.control.RequestDump()
}

// SchedulerExit says how the scheduler under test ended.
type SchedulerExit struct {
	Code   *int32 // nil if the message carried no code
	Reason string // the end of a sentence, as the guest has it; "": it has none
}

// String returns the end of a sentence about the scheduler.
func (s *SchedulerExit) String() string {
	switch {
	case s.Reason != "":
		return s.Reason
	case s.Code == nil:
		return "exited without a code"
	}
	return fmt.Sprintf("exited with code %d", *s.Code)
}
