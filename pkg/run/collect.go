package run

import (
	"bytes"
	"errors"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Why handlers end a run.
var (
	errGuestExit     = errors.New("the guest reported EXIT")
	errSchedulerExit = errors.New("the guest reported SCDX")
	errCrash         = errors.New("the guest reported CRSH")
)

// collector puts what the messages say into a result. It runs on the monitor's goroutine, and
// after that has ended on the run's.
type collector struct {
	r           *Result
	scheduler   *schedulerCollector
	history     *history
	since       func() time.Duration
	resultBytes int
}

func (c *collector) register(x *monitor.Mux) {
	x.HandleFunc(shm.Exit, c.exit)
	x.HandleFunc(shm.SchedulerExit, c.schedulerExit)
	x.HandleFunc(shm.Crash, c.crash)
	x.HandleFunc(shm.Stimulus, c.stimulus)
	x.HandleFunc(shm.TestResult, c.testResult)
	c.scheduler.register(x)
}

func (c *collector) exit(m shm.Message) monitor.Verdict {
	code, err := shm.DecodeCode(m.Payload)
	if err != nil {
		return monitor.Reject(err)
	}
	c.r.GuestExitCode = &code
	return monitor.Stop(errGuestExit)
}

// schedulerExit ends the run whatever the payload: the scheduler is gone, even where its code
// is lost.
func (c *collector) schedulerExit(m shm.Message) monitor.Verdict {
	v := monitor.Stop(errSchedulerExit)
	if c.r.SchedulerExit != nil {
		return v
	}
	c.r.SchedulerExit = &SchedulerExit{Reason: c.scheduler.reason}
	if code, err := shm.DecodeCode(m.Payload); err == nil {
		c.r.SchedulerExit.Code = &code
	}
	return v
}

func (c *collector) crash(m shm.Message) monitor.Verdict {
	if c.r.Crash == nil {
		n := min(len(m.Payload), maxCrashBytes)
		text := shm.CrashText(m.Payload[:n])
		c.r.Crash = &text
		c.r.Omitted.CrashBytes = uint64(len(m.Payload) - n)
	}
	return monitor.Stop(errCrash)
}

func (c *collector) stimulus(m shm.Message) monitor.Verdict {
	s, err := shm.DecodeStimulus(m.Payload)
	if err != nil {
		return monitor.Reject(err)
	}
	if len(c.r.Stimuli) == maxStimuli {
		c.r.Omitted.Stimuli++
	} else {
		c.r.Stimuli = append(c.r.Stimuli, Stimulus{c.since(), s})
	}
	return monitor.Continue
}

func (c *collector) testResult(m shm.Message) monitor.Verdict {
	if len(c.r.TestResults) == maxTestResults || c.resultBytes+len(m.Payload) > maxTestResultBytes {
		c.r.Omitted.TestResults++
		return monitor.Continue
	}
	c.resultBytes += len(m.Payload)
	c.r.TestResults = append(c.r.TestResults, TestResult{c.since(), bytes.Clone(m.Payload)})
	return monitor.Continue
}

func (c *collector) fault(kind string, detail error) {
	if len(c.r.Faults) == maxFaults {
		c.r.Omitted.Faults++
		return
	}
	text := detail.Error()
	c.r.Faults = append(c.r.Faults, Fault{kind, text})
	c.history.event(EventFault, kind+": "+text)
}

// keepOutput keeps the end of what the command writes.
func (r *run) keepOutput(x *monitor.Mux) {
	keep := func(to *tail) func(shm.Message) monitor.Verdict {
		return func(m shm.Message) monitor.Verdict {
			_, _ = to.Write(m.Payload) // never fails
			return monitor.Continue
		}
	}
	x.HandleFunc(shm.Stdout, keep(&r.stdout))
	x.HandleFunc(shm.Stderr, keep(&r.stderr))
}
