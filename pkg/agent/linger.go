package agent

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What becomes of processes that the command leaves behind. All in all they hold up the run's end for
// less than four seconds; output that has come is sent, however long the host takes to make room
// for it.
const (
	// lingerIdle is how long more output may fail to come before they are ended.
	lingerIdle = 500 * time.Millisecond
	// lingerLimit is how long they may go on, output or not.
	lingerLimit = time.Second
	// leftoverTerm is how long they have from a TERM to a KILL.
	leftoverTerm = 500 * time.Millisecond
	// leftoverKill is how long the kernel may take to end them then.
	leftoverKill = time.Second

	lingerPoll = 20 * time.Millisecond
)

// linger returns when all output was sent and what the command left behind is gone.
func (a *agent) linger(ctx context.Context, outputs *sync.WaitGroup) {
	flushed := make(chan struct{})
	go func() {
		outputs.Wait()
		close(flushed)
	}()
	if len(a.leftovers()) > 0 {
		a.flush(ctx, flushed, lingerLimit)
		if !a.endLeftovers(ctx, unix.SIGTERM, leftoverTerm) && !a.endLeftovers(ctx, unix.SIGKILL, leftoverKill) {
			// What survives a KILL for so long may hold on to its pipe, and write to it, too.
			a.flush(ctx, flushed, lingerIdle)
			return
		}
	}
	a.flush(ctx, flushed, 0)
}

// leftovers are the processes that are neither the agent's own nor the scheduler's.
func (a *agent) leftovers() []int {
	scheduler := 0
	if a.scheduler != nil {
		scheduler = a.scheduler.pid
	}
	return descendants(os.Getpid(), scheduler)
}

// endLeftovers signals them until none is left, and reports whether that is so, at the latest after
// a time. It sends a TERM once to each, a KILL again and again: they may be forking.
func (a *agent) endLeftovers(ctx context.Context, s unix.Signal, most time.Duration) bool {
	told := map[int]bool{}
	for end := time.Now().Add(most); ; {
		left := a.leftovers()
		for _, pid := range left {
			if s == unix.SIGKILL || !told[pid] {
				told[pid] = true
				_ = unix.Kill(pid, s)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return len(left) == 0
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(lingerPoll):
		}
	}
}

// flush waits until all output was sent: until the pipes are closed, or have been empty for
// lingerIdle. Where most is not 0 it waits no longer than that, nor when the run is to end.
func (a *agent) flush(ctx context.Context, flushed <-chan struct{}, most time.Duration) {
	var limit <-chan time.Time
	var stopping <-chan struct{}
	if most > 0 {
		limit, stopping = time.After(most), a.stopping
	}
	for idle := time.Duration(0); idle < lingerIdle; idle += lingerPoll {
		before := a.sent.Load()
		select {
		case <-flushed:
			return
		case <-limit:
			return
		case <-stopping:
			return
		case <-ctx.Done():
			return
		case <-time.After(lingerPoll):
		}
		if a.sending.Load() > 0 || a.sent.Load() != before {
			idle = 0
		}
	}
}
