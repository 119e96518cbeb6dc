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

const (
	// schedExtState says whether a sched_ext scheduler is in charge: kernel 6.12 and later, where
	// it is configured.
	schedExtState = "/sys/kernel/sched_ext/state"
	// schedulerUp is how long the scheduler may take to be.
	schedulerUp = 10 * time.Second
	// schedulerSettles is how long it has to live where the kernel has no word for it.
	schedulerSettles = 100 * time.Millisecond
)

// startScheduler starts the scheduler under test and waits until it is up. One that can't be started
// is gone as far as the host is concerned; one that does not come up, or ends at once, is seen by
// wait.
func (a *agent) startScheduler(ctx context.Context) error {
	if len(a.job.Scheduler) == 0 {
		return nil
	}
	p := program{args: a.job.Scheduler, env: a.job.Env, dir: "/", stdout: os.Stdout, stderr: os.Stderr}
	pid, err := p.start()
	if err != nil {
		a.complain(fmt.Errorf("starting the scheduler: %w", err))
		return a.schedulerGone(ctx, startCode(err))
	}
	a.scheduler = pid
	pidfd, err := unix.PidfdOpen(a.scheduler, 0)
	if err != nil { // before Linux 5.3, which had no sched_ext either
		time.Sleep(schedulerSettles)
		return nil
	}
	defer unix.Close(pidfd)
	if _, err := os.Stat(schedExtState); err != nil {
		goneWithin(pidfd, schedulerSettles)
		return nil
	}
	for end := time.Now().Add(schedulerUp); time.Now().Before(end) && !goneWithin(pidfd, time.Millisecond); {
		state, err := os.ReadFile(schedExtState)
		if err == nil && strings.TrimSpace(string(state)) == "enabled" {
			break
		}
	}
	return nil
}

// goneWithin waits until a process has ended, at most for d: pidfd_open(2).
func goneWithin(pidfd int, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(d); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
		if n > 0 || time.Now().After(end) || err != nil && !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// schedulerGone tells the host that the scheduler ended with a code, as a shell gives them.
func (a *agent) schedulerGone(ctx context.Context, code int) error {
	a.scheduler = 0
	payload := shm.EncodeCode(int32(code))
	return a.writer.WriteWait(ctx, shm.SchedulerExit, payload[:])
}
