// Package run is one test run: a machine, its ring and the monitor over it, the deadlines, the
// last drain, and the outcome.
package run

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Defaults for Config's zero values.
const (
	DefaultTimeout = 60 * time.Second
	DefaultGrace   = 3 * time.Second
	// DefaultFlushLimit is how long a stuck reader of a guest's output can delay the end of a run.
	DefaultFlushLimit = 5 * time.Second
)

// joinLimit is how long a stopped machine may take to end before it is given up: its kernel is
// stuck then, and waiting would hang the run.
const joinLimit = 5 * time.Second

// Machine is a virtual machine as a run uses it.
type Machine interface {
	// Memory returns the guest's RAM, including the reserved part. It is valid until Close.
	Memory() *guestmem.Memory
	// Start starts the guest.
	Start() error
	// Stop stops the machine and returns at once; the first reason counts.
	Stop(reason error)
	// Done returns a channel that is closed when the machine has ended, by Stop or by itself.
	Done() <-chan struct{}
	// Wait waits for Done and returns the first reason.
	Wait() error
	// Bell returns a channel that receives when the guest has rung its doorbell; nil if it has none.
	Bell() <-chan struct{}
	// Rings returns how often it has rung.
	Rings() uint64
	// Exits counts the guest's exits to its host, by reason; the set of names is fixed. It returns nil if there are no
	// exits.
	Exits() iter.Seq2[string, uint64]
	// FirstExit returns when the host first knew that the guest runs, or the zero time.
	FirstExit() time.Time
	// Close releases what the machine holds.
	Close() error
}

// Config describes a run. Every field except VM.Kernel and VM.Backend may be left zero.
type Config struct {
	// Prepare returns VM when the run begins, within its deadline, signals and context, because it may wait for a file
	// system that does not answer. The io.Closer is closed when the machine is built. If Prepare is nil, VM is used as
	// it is.
	Prepare func() (vm.Config, io.Closer, error)
	// VM describes the machine. The ring's parameters are put in front of its command line, and the run also reads what
	// the guest writes to its console.
	VM vm.Config
	// NewMachine builds the machine; nil: vm.New.
	NewMachine func(vm.Config) (Machine, error)

	ID         string        // of the run; "": a NewID
	Name       string        // what runs in the guest, or what its user calls it, for reports
	KernelName string        // for reports and metrics
	Suite      string        // which the run is one of, for reports
	Version    string        // of the program, for metrics
	Invocation Invocation    // of the program, for reports
	Timeout    time.Duration // the hard deadline, from Run's call; 0: 60 s
	// Grace is how long before the hard deadline, or before a signal stops the machine, the guest is asked to stop by
	// SignalShutdown; 0: 3 s, negative: it is not asked. At a deadline it is at most half of Timeout.
	Grace time.Duration
	Poll  time.Duration // 0: monitor.DefaultPoll
	Dumps Dumps         // when the guest is asked for a dump

	// Signals delivers SIGINT and SIGTERM. The first asks the guest to stop, the second stops the machine at once; a
	// SIGTERM within a second of another one is the same. Nil: no signals.
	Signals <-chan os.Signal
	// OnStart is called when the machine and the metrics are in place, before the guest runs.
	OnStart func()
	// OnLive is called once before that, with a handle on the run.
	OnLive func(*Live)
	// OnMessage is called for every message as it is read, with the time since Run's call, before all other handlers.
	// It runs on the monitor's goroutine and must not block; the payload is valid until it returns. If it returns
	// monitor.NotNow, the message stays in the ring and comes again: that is how a slow reader of a guest's output
	// slows down the guest, and nothing else.
	OnMessage func(at time.Duration, m shm.Message) monitor.Verdict
	// Flush writes what OnMessage has accepted, when the guest has ended and the ring is empty. It returns when that is
	// done or ctx ends, with the number of bytes that had no reader. Nil: there is nothing to write.
	Flush func(ctx context.Context) (lost uint64)
	// FlushLimit bounds the time for slow readers after the guest's end, in total; 0: 5 s. A signal cuts it short.
	FlushLimit time.Duration
	// Calls gives the guest a call area behind the ring, in memory that VM.Reserved does not count, and says what it is
	// answered. Nil: it has none.
	Calls *Calls
	// Handlers adds handlers to those of the run.
	Handlers func(*monitor.Mux)
	// Drive plays the host's part while the guest runs: control bytes and signal slots. It must return soon after ctx
	// ends. Its error, unless it is ctx's, fails the run.
	Drive func(ctx context.Context, c shm.Control) error
	// Symbols reads the symbols and types of the guest's Linux kernel from its file, for looks at what its CPUs are
	// doing. It may wait for a file system: it is called when they are needed, at the earliest when the machine is
	// built, and no run waits for it longer than 2 s. If it fails, they are taken from the guest's memory; a kernel that
	// it returns all the same has symbols alone, for Live.Registers. Nil: the guest is no Linux, and not looked at.
	Symbols func() (*introspect.Kernel, error)
	// KeepRing keeps the ring as it is when the guest has ended, for Result.RingImage.
	KeepRing bool
	// Registry gets the run's metrics, which stay valid after the run; each run needs its own. Nil: none.
	Registry prometheus.Registerer
	// CPUMetrics is for a Registry that is asked while the guest runs: it also gets what the guest's CPUs do, for which
	// they are looked at at every poll, and the kernel is looked for in the guest's memory.
	CPUMetrics bool
	Log        *zap.Logger // nil: nothing is logged
}

func (c Config) withDefaults() Config {
	if c.NewMachine == nil {
		c.NewMachine = func(cfg vm.Config) (Machine, error) {
			m, err := vm.New(cfg)
			if err != nil {
				return nil, err
			}
			return m, nil
		}
	}
	if c.ID == "" {
		c.ID = NewID()
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.FlushLimit == 0 {
		c.FlushLimit = DefaultFlushLimit
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return c
}

// NewID returns an ID for a run: 16 random hex digits.
func NewID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return hex.EncodeToString(b[:])
}

// Run runs a guest to its end and returns the result. It never returns nil: if something keeps the run from happening,
// the result has the outcome Failed. Cancelling ctx stops the machine at once, as an interruption.
func Run(ctx context.Context, cfg Config) *Result {
	cfg = cfg.withDefaults()
	r := &run{
		cfg:    cfg,
		panic:  newPanicWatch(),
		holds:  make(chan bool),
		stdout: tail{limit: maxOutputTail}, stderr: tail{limit: maxOutputTail},
		result: &Result{ID: cfg.ID, Name: cfg.Name, Kernel: cfg.KernelName, Suite: cfg.Suite,
			Invocation: cfg.Invocation, StartedAt: time.Now()},
	}
	r.console = &consoleTail{tail: tail{limit: maxConsoleBytes}, since: r.since}
	r.history = newHistory(r.since)
	r.result.describe(cfg.VM)
	r.scheduler = newSchedulerCollector(r.result, r.since)
	err := r.run(ctx)
	r.finish(err)
	if r.live != nil {
		close(r.live.done)
	}
	return r.result
}

// run is the state of one Run.
type run struct {
	cfg            Config
	result         *Result
	console        *consoleTail
	stdout, stderr tail // of the command
	panic          *panicWatch
	history        *history
	live           *Live // nil where nobody asks
	parts
	metrics    *metrics
	cpuMetrics *cpuMetrics // nil where nobody asks
	observer   *observer   // nil where there is nothing to look at

	scheduler *schedulerCollector
	activity  activity

	signal   os.Signal // the first that came
	timedOut string    // which deadline passed
	guestEnd error     // why the guest ended the machine, where it did
	lost     uint64    // bytes of the guest's output that had no reader
	holds    chan bool // whether the deadlines are suspended
}

// parts are what a run is made of, when they are built.
type parts struct {
	machine Machine
	monitor *monitor.Monitor
	control shm.Control
	calls   *call.Host // nil where the guest has no call area
}

func (r *run) since() time.Duration { return time.Since(r.result.StartedAt) }

func (r *run) run(ctx context.Context) error {
	if err := r.awaitBuild(ctx); err != nil || r.machine == nil {
		return err
	}
	log := r.cfg.Log
	log.Debug("machine built", zap.Duration("after", r.since()), zap.Stringer("ring", r.result.RingBase))
	if err := r.openLive(); err != nil {
		return errors.Join(err, r.machine.Close())
	}
	defer r.live.end()
	if r.cfg.OnStart != nil {
		r.cfg.OnStart()
	}
	if err := r.monitor.Start(); err != nil {
		return errors.Join(err, r.giveBack())
	}
	r.startCalls()
	if err := r.machine.Start(); err != nil {
		r.stopCalls()
		r.monitor.Stop()
		return errors.Join(err, r.giveBack())
	}
	r.history.enter(PhaseBoot)
	driverCtx, stopDriver := context.WithCancel(ctx)
	driver := make(chan error, 1)
	go func() { driver <- r.drive(driverCtx) }()

	r.startLooks()

	err := r.watch(ctx, driver)
	r.history.enter(PhaseEnd)

	stopDriver()
	driverErr := <-driver
	if err == nil && driverErr != nil && !errors.Is(driverErr, context.Canceled) {
		err = fmt.Errorf("driving the guest: %w", driverErr)
	}
	r.stopCalls()
	r.monitor.Stop()
	r.stopLooks()
	r.flush()
	select {
	case <-r.machine.Done():
	default: // given up: its memory stays, for a vCPU may still use it
		return err
	}
	r.lastLook()
	if r.cfg.KeepRing {
		r.result.RingImage, err = r.keepRing(err)
	}
	r.result.Rings = r.machine.Rings()
	r.result.FirstExit = firstExit(r.machine.FirstExit(), r.result.StartedAt)
	if closeErr := r.giveBack(); closeErr != nil {
		log.Warn("the machine could not be given back whole", zap.Error(closeErr)) // no reason to lose the outcome
	}
	return err
}

// giveBack gives the machine back, which nobody uses then.
func (r *run) giveBack() error {
	r.live.end()
	return r.machine.Close()
}

// openLive gives out the handle on the run.
func (r *run) openLive() (err error) {
	if r.cfg.OnLive == nil {
		return nil
	}
	if r.live, err = newLive(r); err == nil {
		r.cfg.OnLive(r.live)
	}
	return err
}

// flush reads what is left in the ring and writes out what was taken, for a time in all. A part of it is kept for
// what a slow reader left in the ring beside a fast one's, which is taken last.
func (r *run) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.FlushLimit)
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-r.cfg.Signals:
			if r.signal == nil {
				r.signal = s
			}
			cancel()
		case <-ctx.Done():
		}
	}()
	reading, ended := context.WithTimeout(ctx, r.cfg.FlushLimit-r.cfg.FlushLimit/10)
	r.monitor.Finish(reading)
	ended()
	if r.cfg.Flush != nil {
		r.lost = r.cfg.Flush(ctx)
	}
	cancel()
	<-watched
}

func firstExit(at, start time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return at.Sub(start)
}

func (r *run) drive(ctx context.Context) error {
	if r.cfg.Drive == nil {
		return nil
	}
	return r.cfg.Drive(ctx, r.control)
}

// askToStop tells the guest to flush, report and stop.
func (r *run) askToStop() {
	r.history.enter(PhaseEnd)
	_ = r.control.Signal(shm.SlotHost, shm.SignalShutdown) // SlotHost exists
}

// finish decides the outcome and fills in the rest of the result.
func (r *run) finish(err error) {
	res := r.result
	res.Err = err
	if r.monitor != nil {
		res.Ring = r.monitor.Stats()
	}
	r.scheduler.finish()
	res.Omitted.OutputBytes = res.Ring.Omitted + r.lost
	res.Console, res.Omitted.ConsoleBytes = r.console.bytes()
	res.ConsoleTimes = r.console.lineTimes()
	res.Stdout.Bytes, res.Stderr.Bytes = r.stdout.written(), r.stderr.written()
	res.Stdout.Tail, _ = r.stdout.bytes()
	res.Stderr.Tail, _ = r.stderr.bytes()
	r.history.fill(res)
	if text := kernelPanic(res.Console); text != "" && res.Crash == nil {
		res.Crash, res.Panicked = &text, true
	}
	res.Outcome, res.ExitCode, res.Reason = Decide(Evidence{
		Err:           err,
		Signal:        r.signal,
		Crash:         res.Crash,
		SchedulerExit: res.SchedulerExit,
		TimedOut:      r.timedOut,
		Faults:        res.Ring.FaultCount(),
		CRCErrors:     res.Ring.CRCErrors,
		GuestExit:     res.GuestExitCode,
		OutputLost:    res.Omitted.OutputBytes,
		GuestEnd:      r.guestEnd,
	})
	res.Duration = r.since()
	if r.metrics != nil {
		r.metrics.finish(res)
	}
	r.cfg.Log.Debug("run ended", zap.String("outcome", string(res.Outcome)), zap.Duration("after", res.Duration))
}
