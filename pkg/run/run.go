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
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Defaults of Config's zero values.
const (
	DefaultTimeout = 60 * time.Second
	DefaultGrace   = 3 * time.Second
)

// joinLimit is how long a stopped machine may take to end before it is given up: its kernel is
// stuck then, and waiting would hang the run.
const joinLimit = 5 * time.Second

// Machine is a virtual machine as a run drives it.
type Machine interface {
	// Memory is the guest's RAM, the reserved part included, until Close.
	Memory() *guestmem.Memory
	// Start lets the guest run.
	Start() error
	// Stop ends the machine and returns at once; the first reason counts.
	Stop(reason error)
	// Done is closed when the machine has ended, by Stop or by itself.
	Done() <-chan struct{}
	// Wait waits for Done and returns the first reason.
	Wait() error
	// Exits counts why the guest left to its host, by reason; a fixed set of names. Nil where there are
	// no exits.
	Exits() iter.Seq2[string, uint64]
	// FirstExit is when the host first heard that the guest runs, or the zero time.
	FirstExit() time.Time
	// Close gives back what the machine holds.
	Close() error
}

// Config describes a run. The zero value of every field but VM.Kernel and VM.Backend has a meaning.
type Config struct {
	// VM describes the machine. Its command line gets the ring's parameters in front, and what it
	// writes to its console the run reads too.
	VM vm.Config
	// NewMachine builds the machine; nil: vm.New does.
	NewMachine func(vm.Config) (Machine, error)

	ID         string        // of the run; "": 16 random hex digits
	Name       string        // what runs in the guest, for reports
	KernelName string        // for reports and metrics
	Version    string        // of the program, for metrics
	Timeout    time.Duration // the hard deadline, from Run's call; 0: 60 s
	// Grace is how long before the hard deadline, and before a signal stops the machine, the
	// guest is asked to stop by SignalShutdown; 0: 3 s, negative: it is not asked. At a
	// deadline it is at most half of Timeout.
	Grace time.Duration
	Poll  time.Duration // 0: monitor.DefaultPoll

	// Signals delivers SIGINT and SIGTERM. The first asks the guest to stop, a second one
	// stops the machine at once. Nil: none come.
	Signals <-chan os.Signal
	// OnStart is called when the machine and the metrics are in place, before the guest runs.
	OnStart func()
	// OnMessage is called for every message as it is read, with the time since Run's call. It
	// runs on the monitor's goroutine and must not block; the payload is valid until it returns.
	OnMessage func(at time.Duration, m shm.Message)
	// Handlers adds to what a run does with its messages.
	Handlers func(*monitor.Mux)
	// Drive plays the host's part while the guest runs: control bytes and signal slots. It
	// returns soon after ctx ends. Its error, unless it is ctx's, fails the run.
	Drive func(ctx context.Context, c shm.Control) error
	// Registry gets the run's metrics, which stay valid after it; one for each run. Nil: none.
	Registry prometheus.Registerer
	Log      *zap.Logger // nil: nothing
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
		var b [8]byte
		_, _ = rand.Read(b[:]) // crypto/rand never fails
		c.ID = hex.EncodeToString(b[:])
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.VM.Memory == 0 {
		c.VM.Memory = vm.DefaultMemory
	}
	if c.VM.Reserved == 0 {
		c.VM.Reserved = vm.DefaultReserved
	}
	if c.VM.CPUs == 0 {
		c.VM.CPUs = 1
	}
	return c
}

// Run runs a guest to its end and says what became of it. There is always a result: what keeps
// the run from happening is one too, with the outcome Failed. Cancelling ctx stops the machine
// at once, as an interruption.
func Run(ctx context.Context, cfg Config) *Result {
	cfg = cfg.withDefaults()
	r := &run{
		cfg:     cfg,
		console: &tail{limit: maxConsoleBytes},
		panic:   newPanicWatch(),
		result: &Result{
			ID:          cfg.ID,
			Name:        cfg.Name,
			Kernel:      cfg.KernelName,
			StartedAt:   time.Now(),
			Arch:        arch(cfg.VM),
			Accelerator: accelerator(cfg.VM),
			CPUs:        cfg.VM.CPUs,
			Memory:      cfg.VM.Memory,
			RingSize:    cfg.VM.Reserved,
		},
	}
	err := r.run(ctx)
	r.finish(err)
	return r.result
}

// arch names the guest's architecture; "" where there is no guest.
func arch(cfg vm.Config) string {
	if cfg.Kernel == nil {
		return ""
	}
	return cfg.Kernel.Board().Arch()
}

// accelerator names who runs the guest; "" where nobody was chosen.
func accelerator(cfg vm.Config) string {
	if cfg.Backend == nil {
		return ""
	}
	return cfg.Backend.Name()
}

// run is the state of one Run.
type run struct {
	cfg     Config
	result  *Result
	console *tail
	panic   *panicWatch
	machine Machine
	monitor *monitor.Monitor
	control shm.Control
	metrics *metrics

	signal   os.Signal // the first that came
	timedOut string    // which deadline passed
	guestEnd error     // why the guest ended the machine, where it did
}

func (r *run) since() time.Duration { return time.Since(r.result.StartedAt) }

func (r *run) run(ctx context.Context) error {
	if err := r.build(); err != nil {
		return err
	}
	log := r.cfg.Log
	log.Debug("machine built", zap.Duration("after", r.since()), zap.Stringer("ring", r.result.RingBase))
	if r.cfg.OnStart != nil {
		r.cfg.OnStart()
	}
	if err := r.monitor.Start(); err != nil {
		return errors.Join(err, r.machine.Close())
	}
	if err := r.machine.Start(); err != nil {
		r.monitor.Stop()
		return errors.Join(err, r.machine.Close())
	}
	driverCtx, stopDriver := context.WithCancel(ctx)
	driver := make(chan error, 1)
	go func() { driver <- r.drive(driverCtx) }()

	err := r.watch(ctx, driver)

	stopDriver()
	driverErr := <-driver
	if err == nil && driverErr != nil && !errors.Is(driverErr, context.Canceled) {
		err = fmt.Errorf("driving the guest: %w", driverErr)
	}
	r.monitor.Stop()
	select {
	case <-r.machine.Done():
	default: // given up: its memory stays, for a vCPU may still use it
		return err
	}
	r.monitor.Finish()
	r.result.FirstExit = firstExit(r.machine.FirstExit(), r.result.StartedAt)
	if closeErr := r.machine.Close(); closeErr != nil {
		log.Warn("the machine could not be given back whole", zap.Error(closeErr)) // no reason to lose the outcome
	}
	return err
}

func firstExit(at, start time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return at.Sub(start)
}

// build makes the machine with its ring in place, and the monitor.
func (r *run) build() error {
	if r.cfg.VM.Kernel == nil {
		return fmt.Errorf("%w: no kernel given", vm.ErrConfig)
	}
	layout, err := r.cfg.VM.Kernel.Board().Layout(r.cfg.VM.Memory, r.cfg.VM.Reserved)
	if err != nil {
		return err
	}
	ring := layout.Reserved
	r.result.RingBase = ring.Base
	cfg := r.cfg.VM
	cfg.Cmdline = shm.Params{Base: uint64(ring.Base), Size: ring.Size}.String() + " " + cfg.Cmdline
	console := []io.Writer{r.console, r.panic}
	if r.cfg.VM.Console != nil {
		console = append(console, r.cfg.VM.Console)
	}
	cfg.Console = io.MultiWriter(console...)
	if r.machine, err = r.cfg.NewMachine(cfg); err != nil {
		return err
	}
	if err := r.buildMonitor(ring); err != nil {
		return errors.Join(err, r.machine.Close())
	}
	return nil
}

func (r *run) buildMonitor(ring vm.Span) error {
	region, err := r.machine.Memory().Window(ring.Base, ring.Size)
	if err != nil {
		return err
	}
	if err := shm.Init(region); err != nil {
		return err
	}
	reader, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		return err
	}
	if r.control, err = shm.NewControl(region); err != nil {
		return err
	}
	c := &collector{r: r.result}
	mux := monitor.NewMux()
	if r.cfg.OnMessage != nil {
		mux.HandleAll(monitor.HandlerFunc(func(m shm.Message) monitor.Verdict {
			r.cfg.OnMessage(r.since(), m)
			return monitor.Continue
		}))
	}
	c.register(mux)
	if r.cfg.Handlers != nil {
		r.cfg.Handlers(mux)
	}
	r.monitor = monitor.New(monitor.Config{Reader: reader, Mux: mux, Poll: r.cfg.Poll, OnFault: c.fault})
	if r.cfg.Registry != nil {
		r.metrics = newMetrics(r.cfg, r.result.StartedAt, r.machine)
		for _, collector := range []prometheus.Collector{r.monitor, r.metrics} {
			if err := r.cfg.Registry.Register(collector); err != nil {
				return fmt.Errorf("registering metrics: %w", err)
			}
		}
	}
	return nil
}

func (r *run) drive(ctx context.Context) error {
	if r.cfg.Drive == nil {
		return nil
	}
	return r.cfg.Drive(ctx, r.control)
}

// Why a run stops its machine, beside a handler's verdict.
var (
	errDeadline  = errors.New("the hard deadline passed")
	errInterrupt = errors.New("the run was interrupted")
	errDriver    = errors.New("driving the guest failed")
	errPanic     = errors.New("the guest's kernel panicked")
)

// watch waits for whatever ends the run first, stops the machine for it, and returns when the
// machine has ended or is given up.
func (r *run) watch(ctx context.Context, driver chan error) error {
	hard := time.NewTimer(r.cfg.Timeout - r.since())
	defer hard.Stop()
	soft := newSoftDeadline(r.cfg.Timeout, r.cfg.Grace, r.since())
	defer soft.Stop()
	interrupt := ctx.Done()
	panicked := r.panic.seen
	var giveUp, graceOver, traceOver <-chan time.Time
	stop := func(reason error) {
		r.machine.Stop(reason)
		if giveUp == nil {
			giveUp = time.After(joinLimit)
		}
	}
	for {
		select {
		case <-r.machine.Done():
			return r.ended(r.machine.Wait())
		case reason := <-r.monitor.Verdict():
			stop(reason)
		case <-soft.C:
			// What the guest wrote before it is asked is not a timeout.
			r.monitor.Sync()
			select {
			case reason := <-r.monitor.Verdict():
				stop(reason)
			default:
				r.timedOut = fmt.Sprintf("the soft deadline passed, %v before the hard one at %v", softGrace(r.cfg.Timeout, r.cfg.Grace), r.cfg.Timeout)
				r.askToStop()
			}
		case <-hard.C:
			if giveUp == nil { // else it is stopping for another reason
				r.timedOut = fmt.Sprintf("the hard deadline passed after %v", r.cfg.Timeout)
				stop(errDeadline)
			}
		case s := <-r.cfg.Signals:
			switch {
			case giveUp != nil: // the run is over already
			case r.signal != nil:
				stop(errInterrupt)
			case r.cfg.Grace < 0:
				r.signal = s
				stop(errInterrupt)
			default:
				r.signal = s
				r.askToStop()
				graceOver = time.After(r.cfg.Grace)
			}
		case <-graceOver:
			stop(errInterrupt)
		case <-panicked:
			panicked = nil
			traceOver = time.After(panicTrace)
		case <-traceOver:
			stop(errPanic)
		case <-interrupt:
			interrupt = nil
			if r.signal == nil && giveUp == nil {
				r.signal = syscall.SIGINT
			}
			stop(errInterrupt)
		case err := <-driver:
			driver <- err // for run, which waits for it
			driver = nil
			if err != nil {
				stop(errDriver)
			}
		case <-giveUp:
			return fmt.Errorf("the machine did not end within %v of being stopped: the host's kernel is stuck", joinLimit)
		}
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

// askToStop tells the guest to flush, report and stop.
func (r *run) askToStop() {
	_ = r.control.Signal(shm.SlotHost, shm.SignalShutdown) // SlotHost exists
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

// finish decides the outcome and fills in the rest of the result.
func (r *run) finish(err error) {
	res := r.result
	res.Err = err
	if r.monitor != nil {
		res.Ring = r.monitor.Stats()
	}
	res.Console, res.Omitted.ConsoleBytes = r.console.bytes()
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
		GuestEnd:      r.guestEnd,
	})
	res.Duration = r.since()
	if r.metrics != nil {
		r.metrics.finish(res)
	}
	r.cfg.Log.Debug("run ended", zap.String("outcome", string(res.Outcome)), zap.Duration("after", res.Duration))
}
