package agent

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// realTimePriority is the lowest of SCHED_FIFO: sched(7). It is above all that a sched_ext scheduler decides about.
const realTimePriority = 1

// setRealTime gives a thread of the agent's the policy SCHED_FIFO; 0 is the calling one. With resets its children get
// the policy of any process, SCHED_OTHER.
func setRealTime(tid int, resets bool) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: realTimePriority}
	if resets {
		attr.Flags = unix.SCHED_FLAG_RESET_ON_FORK
	}
	if err := unix.SchedSetAttr(tid, &attr, 0); err != nil {
		return fmt.Errorf("giving the agent's thread %d the policy SCHED_FIFO: %w", tid, err)
	}
	return nil
}

// goRealTime keeps the agent's threads from being starved by the scheduler under test. Threads that they start have
// their policy; so the list is read until there is none that another thread may have started before it got its own.
func (a *agent) goRealTime() error {
	seen := map[int]bool{}
	for {
		entries, err := os.ReadDir(a.path("/proc/self/task"))
		if err != nil {
			return err
		}
		before := len(seen)
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil || seen[tid] {
				continue
			}
			seen[tid] = true
			if err := a.kernel.setRealTime(tid, false); errors.Is(err, unix.ESRCH) {
				continue // it has ended
			} else if err != nil {
				return err
			}
			a.reaper.setFork(a.forkOrdinary)
		}
		if len(seen) == before {
			return nil
		}
	}
}

// forkOrdinary starts a child that has no real-time policy, though the agent has one.
func (a *agent) forkOrdinary(fork func() (pid int, err error)) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := a.kernel.setRealTime(0, true); err != nil {
		return 0, err
	}
	defer func() { a.try(a.kernel.setRealTime(0, false)) }()
	return fork()
}
