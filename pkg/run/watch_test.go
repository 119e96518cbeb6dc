package run_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// obeys is a guest that reports an exit code when it is asked to stop, and hangs then.
func obeys(t *testing.T, f **fake) func(*shm.Writer, <-chan struct{}) {
	return func(w *shm.Writer, stopped <-chan struct{}) {
		control, err := shm.NewControl((*f).ring)
		if err != nil {
			t.Error(err)
		}
		for {
			if v, err := control.Read(shm.SlotHost); err == nil && v == shm.SignalShutdown {
				break
			}
			select {
			case <-stopped:
				return
			case <-time.After(time.Millisecond):
			}
		}
		sends(false, coded(shm.Exit, 5))(w, stopped)
	}
}

// hangs is a guest that does nothing.
func hangs(_ *shm.Writer, stopped <-chan struct{}) { <-stopped }

// A guest that is asked to stop at the soft deadline or by a signal has its last words kept, and they do not make
// the run a success.
func TestAskedToStop(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		timeout time.Duration
		signal  os.Signal
		outcome run.Outcome
		exit    int
		reason  string
	}{
		"by the soft deadline": {
			2 * time.Second, nil, run.TimedOut, 124, "the soft deadline passed, 1s before the hard one at 2s",
		},
		"by a signal": {time.Hour, syscall.SIGTERM, run.Interrupted, 143, "SIGTERM"},
	} {
		var f *fake
		f = newFake(t, obeys(t, &f))
		cfg := f.config()
		signals := make(chan os.Signal, 1)
		cfg.Timeout, cfg.Grace, cfg.Signals = tc.timeout, time.Hour, signals
		if tc.signal != nil {
			cfg.OnStart = func() { signals <- tc.signal }
		}
		r := ended(t, t.Context(), cfg, tc.outcome)
		if r.GuestExitCode == nil || *r.GuestExitCode != 5 || r.ExitCode != tc.exit ||
			!strings.Contains(r.Reason, tc.reason) || !strings.Contains(r.Reason, "; the guest exited with code 5") {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// What was written before the soft deadline counts, though it was not read yet.
func TestExitBeforeTheSoftDeadline(t *testing.T) {
	t.Parallel()
	cfg := newFake(t, sends(false, coded(shm.Exit, 6))).config()
	cfg.Timeout, cfg.Grace, cfg.Poll = time.Second, time.Second, time.Hour
	if r := ended(t, t.Context(), cfg, run.Exited); r.ExitCode != 6 {
		t.Errorf("%+v", r)
	}
}

// A signal ends a guest that does not listen: when the grace is over, or at once where there is none. A signal
// that is none of syscall's has SIGINT's code.
func TestSignalsEndDeafGuests(t *testing.T) {
	t.Parallel()
	for grace, signal := range map[time.Duration]os.Signal{20 * time.Millisecond: odd{}, -1: syscall.SIGINT} {
		cfg := newFake(t, hangs).config()
		signals := make(chan os.Signal, 1)
		cfg.Grace, cfg.Signals = grace, signals
		cfg.OnStart = func() { signals <- signal }
		r := ended(t, t.Context(), cfg, run.Interrupted)
		if r.ExitCode != 130 || !strings.Contains(r.Reason, signal.String()) {
			t.Errorf("%v: %+v", signal, r)
		}
	}
}

// The report tells of every signal that did something, also of the one that was not to wait for the guest.
func TestSignalsAreEvents(t *testing.T) {
	cfg := newFake(t, hangs).config()
	signals := make(chan os.Signal, 2)
	cfg.Grace, cfg.Signals = hangLimit, signals
	cfg.OnStart = func() { signals <- syscall.SIGTERM; signals <- syscall.SIGINT }
	r := ended(t, t.Context(), cfg, run.Interrupted)
	if len(r.Events) != 2 || r.Events[0].Kind != run.EventStop || r.Events[0].Text != "SIGTERM" ||
		r.Events[1].Kind != run.EventStop || r.Events[1].Text != "SIGINT" {
		t.Errorf("%+v", r.Events)
	}
}

type odd struct{}

func (odd) String() string { return "odd" }
func (odd) Signal()        {}

// What still waits for a reader when the guest has ended is given up at a signal, and the run is an interrupted
// one. What was lost by then is counted.
func TestSignalCutsTheFlushShort(t *testing.T) {
	cfg := newFake(t, sends(true, coded(shm.Exit, 0))).config()
	signals := make(chan os.Signal, 1)
	cfg.Signals, cfg.FlushLimit = signals, time.Hour
	cfg.Flush = func(ctx context.Context) uint64 {
		signals <- syscall.SIGTERM
		<-ctx.Done()
		return 7
	}
	r := ended(t, t.Context(), cfg, run.Interrupted)
	if r.ExitCode != 143 || r.Omitted.OutputBytes != 7 {
		t.Errorf("%+v", r)
	}
}

// How a machine ends by itself is the outcome where the guest reported none: its own end is no verdict, and the
// back end's failure is the host's.
func TestMachinesOwnEnd(t *testing.T) {
	for end, outcome := range map[error]run.Outcome{
		vm.ErrReset: run.NoVerdict, vm.ErrPowerOff: run.NoVerdict, vm.ErrTripleFault: run.NoVerdict, vm.ErrRun: run.Failed,
	} {
		f := newFake(t, func(*shm.Writer, <-chan struct{}) {})
		f.end = end
		r := ended(t, t.Context(), f.config(), outcome)
		if !strings.Contains(r.Reason, end.Error()) || outcome == run.Failed != errors.Is(r.Err, vm.ErrRun) {
			t.Errorf("%v: %+v", end, r)
		}
	}
}

// A kernel's panic ends the run though the machine does not, when it has had time to say why.
func TestPanicEndsARun(t *testing.T) {
	t.Parallel()
	var f *fake
	f = newFake(t, func(_ *shm.Writer, stopped <-chan struct{}) {
		_, _ = io.WriteString(f.console, "boot\r\nBUG: it breaks\r\nKernel panic - not syncing: broken\r\n")
		_, _ = io.WriteString(f.console, "Call Trace:\r\n")
		<-stopped
	})
	cfg := f.config()
	cfg.Timeout = time.Hour
	r := ended(t, t.Context(), cfg, run.Crashed)
	if !r.Panicked || *r.Crash != "BUG: it breaks\nKernel panic - not syncing: broken\nCall Trace:" || r.ExitCode != 122 {
		t.Errorf("%+v", r)
	}
}

// Whoever plays the host's part is told when the run ends. Its failure is the run's, its end is not.
func TestDriver(t *testing.T) {
	failure := errors.New("it fails")
	for name, tc := range map[string]struct {
		guest   func(*shm.Writer, <-chan struct{})
		drive   func(context.Context, shm.Control) error
		outcome run.Outcome
	}{
		"that ends early": {sends(false, coded(shm.Exit, 0)), func(context.Context, shm.Control) error {
			return nil
		}, run.Exited},
		"that fails": {hangs, func(context.Context, shm.Control) error { return failure }, run.Failed},
		"that waits for the end": {sends(false, coded(shm.Exit, 0)), func(ctx context.Context, _ shm.Control) error {
			<-ctx.Done()
			return ctx.Err()
		}, run.Exited},
		"that fails at the end": {sends(false, coded(shm.Exit, 0)), func(ctx context.Context, _ shm.Control) error {
			<-ctx.Done()
			return failure
		}, run.Failed},
	} {
		cfg := newFake(t, tc.guest).config()
		cfg.Drive = tc.drive
		r := ended(t, t.Context(), cfg, tc.outcome)
		if errors.Is(r.Err, failure) != (tc.outcome == run.Failed) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
}

// A driver and a guest meet by the control bytes.
func TestDriverReachesTheGuest(t *testing.T) {
	var f *fake
	f = newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
		control, err := shm.NewControl(f.ring)
		if err != nil {
			t.Error(err)
		}
		for !control.TakeStall() {
			select {
			case <-stopped:
				return
			case <-time.After(time.Millisecond):
			}
		}
		sends(false, coded(shm.Exit, 0))(w, stopped)
	})
	cfg := f.config()
	cfg.Drive = func(_ context.Context, c shm.Control) error { c.RequestStall(); return nil }
	ended(t, t.Context(), cfg, run.Exited)
}

// A machine that can't be built, has no room for the ring or does not start is the host's failure, and is closed.
// One that can't be closed does not change the outcome.
func TestMachineFails(t *testing.T) {
	failure := errors.New("it fails")
	for name, tc := range map[string]struct {
		change  func(*fake, *run.Config)
		outcome run.Outcome
		closed  bool
		says    string
	}{
		"built": {func(_ *fake, c *run.Config) {
			c.NewMachine = func(vm.Config) (run.Machine, error) { return nil, failure }
		}, run.Failed, false, failure.Error()},
		"without the ring": {func(_ *fake, c *run.Config) {
			c.VM.Reserved = 2 * fakeRing
		}, run.Failed, true, "not guest RAM"},
		"started": {func(f *fake, _ *run.Config) { f.startErr = failure }, run.Failed, true, failure.Error()},
		"closed":  {func(f *fake, _ *run.Config) { f.closeErr = failure }, run.Exited, true, "code 0"},
	} {
		f := newFake(t, sends(false, coded(shm.Exit, 0)))
		cfg := f.config()
		tc.change(f, &cfg)
		r := ended(t, t.Context(), cfg, tc.outcome)
		select {
		case <-f.closed:
			if !tc.closed {
				t.Errorf("%s: closed", name)
			}
		default:
			if tc.closed {
				t.Errorf("%s: not closed", name)
			}
		}
		if !strings.Contains(r.Reason, tc.says) {
			t.Errorf("%s: %s", name, r.Reason)
		}
	}
}

// A run has its name and times in the result, and the machine's files closed when the machine is built.
func TestResultDescribesTheRun(t *testing.T) {
	f := newFake(t, sends(false, coded(shm.Exit, 0)))
	f.firstExit = time.Now().Add(time.Minute)
	cfg := f.config()
	built := cfg.VM
	cfg.VM, cfg.ID, cfg.Name, cfg.KernelName = vm.Config{}, "an ID", "a name", "a kernel"
	files := closer(make(chan struct{}))
	cfg.Prepare = func() (vm.Config, io.Closer, error) { return built, files, nil }
	cfg.OnStart = func() {
		select {
		case <-files:
		default:
			t.Error("the machine's files are open yet when the guest starts")
		}
	}
	r := ended(t, t.Context(), cfg, run.Exited)
	if r.ID != "an ID" || r.Name != "a name" || r.Kernel != "a kernel" || r.Arch != "x86_64" ||
		r.Memory != fakeMemory || r.RingSize != fakeRing ||
		r.RingBase != fakeMemory-fakeRing || r.FirstExit < 50*time.Second || r.Duration <= 0 || r.StartedAt.IsZero() {
		t.Errorf("%+v", r)
	}
}

type closer chan struct{}

func (c closer) Close() error { close(c); return nil }

// Handlers of the caller's see each message beside the run's own, and can end the run; that is no result.
func TestHandlers(t *testing.T) {
	cfg := newFake(t, sends(false, message{shm.RawOutput, "enough"})).config()
	cfg.Handlers = func(x *monitor.Mux) {
		x.HandleFunc(shm.RawOutput, func(m shm.Message) monitor.Verdict {
			return monitor.Stop(errors.New(string(m.Payload)))
		})
	}
	ended(t, t.Context(), cfg, run.NoVerdict)
}

// Where one reader took nothing until the time for slow ones was over, there is a moment left to write out what was
// read last for another: that has a reader.
func TestFlushHasAMoment(t *testing.T) {
	t.Parallel()
	cfg := newFake(t, sends(true, message{shm.Stdout, "for nobody"}, message{shm.Stderr, "for a reader"})).config()
	cfg.OnMessage, cfg.FlushLimit = noRoom, time.Second
	read := false
	cfg.Handlers = func(x *monitor.Mux) {
		x.HandleFunc(shm.Stderr, func(shm.Message) monitor.Verdict { read = true; return monitor.Continue })
	}
	cfg.Flush = func(ctx context.Context) uint64 {
		if !read || ctx.Err() != nil {
			t.Errorf("read: %v; the flush begins with %v", read, ctx.Err())
		}
		return 0
	}
	if r := ended(t, t.Context(), cfg, run.NoVerdict); r.Omitted.OutputBytes != uint64(len("for nobody")) {
		t.Errorf("%d bytes had no reader", r.Omitted.OutputBytes)
	}
}
