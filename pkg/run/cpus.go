package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
)

// Look is what a guest's CPUs were doing at a moment of the run.
type Look struct {
	When Moment
	At   time.Duration // since StartedAt
	CPUs []introspect.CPU
}

// Moment is why a guest's CPUs were looked at.
type Moment string

// The moments of a run at which its report shows what the guest's CPUs were doing.
const (
	AskedToStop Moment = "asked_to_stop" // the guest, at its soft deadline or by a signal
	Stalled     Moment = "stalled"       // see Stall
	Stopped     Moment = "stopped"       // after nothing of the guest runs any more
)

// How the kernel is looked for in the guest: it may not be there yet.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 8 * time.Second
	// lookAhead is how long before the soft deadline the kernel is looked for, so that the look is at once. At a signal
	// it is not, so the guest may have begun to stop.
	lookAhead = time.Second
	// maxLooks is how many looks a report has at most, beside the last one.
	maxLooks = 64
	// symbolsLimit is how long a kernel's file is waited for.
	symbolsLimit = 2 * time.Second
	// searchLimit is how long the end of a run waits for the last look. The search in the guest's memory takes a
	// hundredth of it, but some seconds where this host's processors are emulated, too.
	searchLimit = 10 * time.Second
)

// observer looks at what the guest's CPUs are doing. It works on a goroutine of its own, for which nothing waits while
// the guest runs: to find the kernel in the guest's memory takes some 100 ms. Between start and stop all but request
// belongs to that goroutine.
type observer struct {
	symbols func() (*introspect.Kernel, error)
	memory  *guestmem.Memory
	arch    string
	count   int
	since   func() time.Duration
	log     *zap.Logger
	metrics *cpuMetrics // nil: nobody asks

	fromFile chan symbols // receives once
	file     symbols      // what it received
	kernel   *introspect.Kernel
	view     *introspect.View
	err      error // why there is no view, or it showed nothing
	looks    []Look

	named *introspect.View // what its functions are called by its file, where there is no view
	tried time.Time        // when that was last looked for

	requests chan Moment
	namings  chan chan<- introspect.Symbols
	cancel   context.CancelFunc
	done     chan struct{}
}

type symbols struct {
	kernel *introspect.Kernel // with an error: its symbols alone, or nil
	err    error
}

// errNoFile means that the kernel's file has not been read.
var errNoFile = errors.New("the kernel's file was not read in time")

// start starts looking: at every poll if there are metrics, and when it is requested. From prepare on the kernel is
// looked for.
func (o *observer) start(prepare, poll time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	o.cancel, o.done, o.requests = cancel, make(chan struct{}), make(chan Moment, 1)
	o.namings = make(chan chan<- introspect.Symbols)
	o.file.err = errNoFile
	go func() {
		defer close(o.done)
		o.watch(ctx, prepare, poll)
	}()
}

// stop ends the looking.
func (o *observer) stop() {
	o.cancel()
	<-o.done
}

// request asks for a look and returns at once.
func (o *observer) request(when Moment) {
	select {
	case o.requests <- when:
	default: // there is one already
	}
}

func (o *observer) watch(ctx context.Context, prepare, poll time.Duration) {
	find := time.NewTimer(prepare)
	defer find.Stop()
	var ticks <-chan time.Time
	if o.metrics != nil {
		t := time.NewTicker(poll)
		defer t.Stop()
		ticks = t.C
	}
	retry := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case when := <-o.requests:
			o.look(ctx, when)
		case answer := <-o.namings:
			answer <- o.names(ctx)
		case <-find.C:
			if o.open(ctx); o.view == nil {
				find.Reset(retry)
				retry = min(2*retry, lastRetry)
			}
		case <-ticks:
			o.sample()
		}
	}
}

// open finds the kernel, unless it is found already.
func (o *observer) open(ctx context.Context) {
	if o.view != nil {
		return
	}
	start := time.Now()
	if o.err = o.find(ctx); o.err == nil {
		o.log.Debug("the kernel's run queues were found", zap.Duration("took", time.Since(start)))
	}
}

func (o *observer) find(ctx context.Context) (err error) {
	if o.kernel == nil {
		if o.kernel, err = o.read(ctx); err != nil {
			return err
		}
	}
	o.view, err = o.kernel.Open(o.memory)
	return err
}

// read gets the kernel's symbols and types from its file, or else from the guest's memory.
func (o *observer) read(ctx context.Context) (*introspect.Kernel, error) {
	if o.readFile(ctx); errors.Is(o.file.err, errNoFile) {
		return nil, errNoFile
	}
	if o.file.err == nil {
		return o.file.kernel, nil
	}
	k, err := introspect.ReadMemory(ctx, o.memory, o.arch)
	if err != nil {
		return nil, fmt.Errorf("from the guest's memory: %w; from the kernel's file: %w", err, o.file.err)
	}
	return k, nil
}

// readFile reads the kernel's file, unless it is read already.
func (o *observer) readFile(ctx context.Context) {
	if o.fromFile == nil {
		o.fromFile = make(chan symbols, 1)
		go func() { // it may wait for a file system for ever
			k, err := o.symbols()
			o.fromFile <- symbols{k, err}
		}()
	}
	if !errors.Is(o.file.err, errNoFile) {
		return
	}
	select {
	case o.file = <-o.fromFile:
	case <-time.After(symbolsLimit):
	case <-ctx.Done():
	}
}

// look keeps what the CPUs are doing for the report.
func (o *observer) look(ctx context.Context, when Moment) {
	if o.open(ctx); o.view == nil || len(o.looks) == maxLooks && when != Stopped {
		return
	}
	var cpus []introspect.CPU
	if cpus, o.err = o.view.Look(nil, o.count); len(cpus) > 0 {
		o.looks = append(o.looks, Look{when, o.since(), cpus})
	}
}

// names returns what the functions of the guest's kernel are called; nothing if that is not known, or not yet.
func (o *observer) names(ctx context.Context) introspect.Symbols {
	if o.view == nil && o.named == nil && time.Since(o.tried) >= firstRetry {
		// A file without types, which looks can't use, has them too.
		if o.readFile(ctx); o.file.kernel != nil {
			o.named, _ = o.file.kernel.Open(o.memory)
		}
		if o.named == nil {
			o.open(ctx)
		}
		o.tried = time.Now()
	}
	switch {
	case o.view != nil:
		return o.view.Symbols()
	case o.named != nil:
		return o.named.Symbols()
	}
	return introspect.Symbols{}
}

// sample shows what the CPUs are doing to Prometheus.
func (o *observer) sample() {
	if o.view == nil {
		return
	}
	start := time.Now()
	cpus, err := o.view.Look(nil, o.count)
	o.metrics.duration.Observe(time.Since(start).Seconds())
	o.metrics.show(cpus)
	o.err = err
}

// last takes the last look, when the machine has ended and the observer is stopped.
func (o *observer) last(r *Result) {
	ctx, cancel := context.WithTimeout(context.Background(), searchLimit)
	defer cancel()
	o.look(ctx, Stopped)
	r.Looks, r.LookError = o.looks, o.err
	if o.err != nil {
		o.log.Debug("what the guest's CPUs were doing is not known", zap.Error(o.err))
	}
}

// startLooks starts the run's observer. It looks for the kernel at once if metrics are to show what it finds, or a
// stall, else shortly before that is needed.
func (r *run) startLooks() {
	if r.cfg.Symbols == nil {
		return
	}
	r.observer = &observer{symbols: r.cfg.Symbols, memory: r.machine.Memory(), arch: r.result.Arch,
		count: r.result.Topology.CPUs(), since: r.since, log: r.cfg.Log, metrics: r.cpuMetrics}
	left := r.cfg.Timeout - softGrace(r.cfg.Timeout, r.cfg.Grace) - r.since()
	prepare := max(left-lookAhead, left/2)
	if r.cpuMetrics != nil || r.cfg.Dumps.Stall != (Stall{}) {
		prepare = 0
	}
	r.observer.start(prepare, cmp.Or(r.cfg.Poll, monitor.DefaultPoll))
	if r.live != nil {
		r.live.observer.Store(r.observer)
	}
}

// requestLook asks for a look, if there is an observer.
func (r *run) requestLook(when Moment) {
	if r.observer != nil {
		r.observer.request(when)
	}
}

// stopLooks ends the run's observer.
func (r *run) stopLooks() {
	if r.observer != nil {
		r.observer.stop()
	}
}

// lastLook looks once more, when nothing of the guest runs any more. A guest that reported its end has nothing to show,
// and its run does not wait for that.
func (r *run) lastLook() {
	if r.observer == nil {
		return
	}
	if r.result.GuestExitCode == nil || r.timedOut != "" || r.signal != nil || r.cpuMetrics != nil {
		r.observer.last(r.result)
	}
}
