package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// What the kernel says of sched_ext schedulers: Linux 6.12 and later, where it is configured.
const (
	schedExtState = "/sys/kernel/sched_ext/state"    // whether one is in charge
	schedExtOps   = "/sys/kernel/sched_ext/root/ops" // its name, where one is

	schedExtEnabled = "enabled"
)

// codeNotScheduler is the code of a scheduler that is not in charge and whose process has not ended:
// no process ends with it.
const codeNotScheduler = -1

// schedulerPoll is how often the kernel is asked whether it is in charge.
const schedulerPoll = 5 * time.Millisecond

// scheduler is the scheduler under test.
type scheduler struct {
	*process
	known bool   // the kernel says whether it is in charge
	ops   string // the name by which the kernel has it in charge, "" where it says none
}

// startScheduler starts the scheduler under test and waits until it is in charge. What ends it, or
// keeps it from that, is told to the host at once.
func (a *agent) startScheduler(ctx context.Context) error {
	if len(a.job.Scheduler) == 0 {
		return nil
	}
	// In a session of its own, by which its processes are told from the command's.
	p := program{
		args: a.job.Scheduler, env: a.environment(), dir: a.path("/"), stdout: os.Stdout, stderr: os.Stderr,
		sys: unix.SysProcAttr{Setsid: true},
	}
	child, err := a.reaper.start(&p)
	if err != nil {
		a.schedulerGone(ctx, startCode(err), fmt.Sprintf("could not be started: %v", err))
		return nil
	}
	a.scheduler = &scheduler{process: child}
	a.background(func() {
		select {
		case <-child.ended:
			a.schedulerGone(ctx, shellCode(child.status), "")
		case <-ctx.Done():
		}
	})
	if _, err := os.Stat(a.path(schedExtState)); err != nil {
		a.scheduler.endsWithin(ctx, a.limits.schedulerSettles)
		return nil
	}
	a.scheduler.known = true
	a.awaitScheduler(ctx)
	return nil
}

// awaitScheduler waits until the kernel has the scheduler in charge.
func (a *agent) awaitScheduler(ctx context.Context) {
	for end := time.Now().Add(a.limits.schedulerUp); ; {
		state := a.kernelSays(schedExtState)
		if state == schedExtEnabled {
			a.scheduler.ops = a.kernelSays(schedExtOps)
			return
		}
		if time.Now().After(end) {
			a.schedulerGone(ctx, codeNotScheduler, fmt.Sprintf("did not become the scheduler within %v: %s is %q",
				a.limits.schedulerUp, schedExtState, state))
			return
		}
		select {
		case <-a.stopping:
			return
		default:
		}
		if a.scheduler.endsWithin(ctx, schedulerPoll) {
			return
		}
	}
}

// endsWithin reports whether the scheduler ends, waiting for that at most for d.
func (s *scheduler) endsWithin(ctx context.Context, d time.Duration) bool {
	select {
	case <-s.ended:
		return true
	case <-ctx.Done():
	case <-time.After(d):
	}
	return false
}

// lookAtScheduler sees to it that a scheduler which is gone at the run's end is told to be: one that
// ended with the command, and one that the kernel threw out though its process lives on.
func (a *agent) lookAtScheduler(ctx context.Context) {
	s := a.scheduler
	if s == nil {
		return
	}
	gone := s.endsWithin(ctx, a.limits.schedulerSettles)
	a.reaper.reap()
	select {
	case <-s.ended:
		gone = true
	default:
	}
	state, ops := a.kernelSays(schedExtState), a.kernelSays(schedExtOps)
	const thrownOut = "is not the scheduler any more, though its process lives: "
	switch {
	case gone:
		a.schedulerGone(ctx, shellCode(s.status), "")
	case s.known && state != schedExtEnabled:
		a.schedulerGone(ctx, codeNotScheduler, thrownOut+fmt.Sprintf("%s is %q", schedExtState, state))
	case s.known && ops != s.ops && s.ops != "":
		a.schedulerGone(ctx, codeNotScheduler, thrownOut+fmt.Sprintf("%s was %q and is %q", schedExtOps, s.ops, ops))
	}
}

// kernelSays is what a file of the kernel's has, "" where there is none.
func (a *agent) kernelSays(path string) string {
	text, _ := os.ReadFile(a.path(path))
	return strings.TrimSpace(string(text))
}

// schedulerGone tells the host, once, that the scheduler is gone: with a code, as a shell gives them,
// and on stderr with a reason where the code does not say all.
func (a *agent) schedulerGone(ctx context.Context, code int, reason string) {
	a.schedGone.Do(func() {
		if reason != "" {
			a.warn(errors.New("the scheduler under test " + reason))
		}
		payload := shm.EncodeCode(int32(code))
		a.try(a.writer.WriteWait(ctx, shm.SchedulerExit, payload[:]))
	})
}
