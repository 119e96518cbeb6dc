package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Why a run stops its machine, beside a handler's verdict.
var (
	errDeadline  = errors.New("the hard deadline passed")
	errInterrupt = errors.New("the run was interrupted")
	errDriver    = errors.New("driving the guest failed")
	errPanic     = errors.New("the guest's kernel panicked")
)

// watcher waits for whatever ends a run first. It waits for nothing else: not for the monitor, a handler or a
// reader of output.
type watcher struct {
	*run
	synced      <-chan struct{}  // at the soft deadline: what was written before it has been read
	giveUp      <-chan time.Time // set when the machine was told to stop
	graceOver   <-chan time.Time // set by a signal
	signalledAt time.Time        // when the guest was asked to stop by one
	traceOver   <-chan time.Time // set by a panic
}

// watch stops the machine for what ends the run, and returns when the machine has ended or is given up. The
// driver's error stays in its channel.
func (r *run) watch(ctx context.Context, driver chan error) error {
	w := &watcher{run: r}
	hard := time.NewTimer(r.cfg.Timeout - r.since())
	defer hard.Stop()
	soft := newSoftDeadline(r.cfg.Timeout, r.cfg.Grace, r.since())
	defer soft.Stop()
	timers := deadlines{hard: hard, soft: soft}
	stall := stallWatch{Stall: r.cfg.Dumps.Stall, seen: &r.activity}
	polls, stopPolls := stall.ticks(r.cfg.Poll)
	defer stopPolls()
	cancelled, panicked := ctx.Done(), r.panic.seen
	requests := r.live.asked()
	for {
		select {
		case <-r.machine.Done():
			return r.ended(r.machine.Wait())
		case reason := <-r.monitor.Verdict():
			w.stop(reason)
		case <-soft.C:
			w.synced = r.monitor.Sync()
		case <-w.synced:
			w.synced = nil
			w.softDeadline()
		case now := <-polls:
			if why := stall.poll(now); why != "" && w.giveUp == nil {
				r.requestLook(Stalled)
				r.requestDump(why)
			}
		case <-hard.C:
			w.hardDeadline()
		case on := <-r.holds:
			timers.hold(on, r.cfg, r.since())
		case s := <-r.cfg.Signals:
			w.signalled(s)
		case why := <-requests.dumps:
			r.requestDump(why)
		case now := <-requests.stops:
			w.stopRequested(now)
		case <-w.graceOver:
			w.stop(errInterrupt)
		case <-panicked:
			panicked = nil
			w.traceOver = time.After(panicTrace)
		case <-w.traceOver:
			w.stop(errPanic)
		case <-cancelled:
			cancelled = nil
			if r.signal == nil && w.giveUp == nil {
				r.signal = syscall.SIGINT
			}
			w.stop(errInterrupt)
		case err := <-driver:
			driver <- err
			driver = nil
			if err != nil {
				w.stop(errDriver)
			}
		case <-w.giveUp:
			return fmt.Errorf("the machine did not end within %v of being stopped: the host's kernel is stuck", joinLimit)
		}
	}
}

func (w *watcher) stop(reason error) {
	w.machine.Stop(reason)
	if w.giveUp == nil {
		w.giveUp = time.After(joinLimit)
	}
}

// softDeadline asks the guest to stop, unless what it wrote before is its end already.
func (w *watcher) softDeadline() {
	select {
	case reason := <-w.monitor.Verdict():
		w.stop(reason)
		return
	default:
	}
	if w.giveUp == nil {
		w.timedOut = fmt.Sprintf("the soft deadline passed, %v before the hard one at %v",
			softGrace(w.cfg.Timeout, w.cfg.Grace), w.cfg.Timeout)
		w.history.event(EventDeadline, w.timedOut)
		w.requestLook(AskedToStop)
		if w.cfg.Dumps.AtSoftDeadline {
			w.requestDump("the soft deadline has passed")
		}
		w.askToStop()
	}
}

func (w *watcher) hardDeadline() {
	if w.giveUp == nil { // else it is stopping for another reason
		w.timedOut = fmt.Sprintf("the hard deadline passed after %v", w.cfg.Timeout)
		w.history.event(EventDeadline, w.timedOut)
		w.stop(errDeadline)
	}
}

// sameSignal is for how long a SIGTERM behind another one is the same: a batch system or systemd sends it to all
// processes of a job, and a suite among them passes it on.
const sameSignal = time.Second

// signalled asks the guest to stop at the first signal, and does not wait for it at a second.
func (w *watcher) signalled(s os.Signal) {
	if w.giveUp != nil || // the run is over already
		w.signal == syscall.SIGTERM && s == syscall.SIGTERM && time.Since(w.signalledAt) < sameSignal {
		return
	}
	w.history.event(EventStop, SignalName(s))
	switch {
	case w.signal != nil:
		w.stop(errInterrupt)
	case w.cfg.Grace < 0:
		w.signal = s
		w.stop(errInterrupt)
	default:
		w.signal, w.signalledAt = s, time.Now()
		w.requestLook(AskedToStop)
		w.askToStop()
		w.graceOver = time.After(w.cfg.Grace)
	}
}

// stopRequested ends the run for a request. A second one means nothing, unless it is not to wait for the guest.
func (w *watcher) stopRequested(now bool) {
	switch {
	case w.giveUp != nil: // the run is over already
	case now:
		w.history.event(EventStop, stopRequest{}.String())
		w.signal = cmp.Or[os.Signal](w.signal, stopRequest{})
		w.stop(errInterrupt)
	case w.signal == nil:
		w.signalled(stopRequest{})
	}
}

// ended sorts out why the machine ended: a stop of ours, the guest's own doing, or the host's
// failure.
func (r *run) ended(reason error) error {
	switch {
	case errors.Is(reason, vm.ErrReset), errors.Is(reason, vm.ErrPowerOff), errors.Is(reason, vm.ErrTripleFault):
		r.guestEnd = reason
	case errors.Is(reason, vm.ErrRun):
		return reason
	}
	return nil
}

// softGrace is how long before the hard deadline the guest is asked to stop; 0: it is not.
func softGrace(timeout, grace time.Duration) time.Duration {
	return max(0, min(grace, timeout/2))
}

// newSoftDeadline returns a timer for the soft deadline; one that never fires where there is none.
func newSoftDeadline(timeout, grace, since time.Duration) *time.Timer {
	g := softGrace(timeout, grace)
	t := time.NewTimer(timeout - g - since)
	if g == 0 {
		t.Stop()
	}
	return t
}
