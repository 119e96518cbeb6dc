package run_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// fake is a machine whose guest is a function of the test's.
type fake struct {
	memory *guestmem.Memory
	ring   *guestmem.Window
	guest  func(w *shm.Writer, stopped <-chan struct{}) // the machine ends when it returns
	closed chan struct{}
	bell   chan struct{} // nil: none

	console   io.Writer // when the machine is built
	exits     iter.Seq2[string, uint64]
	firstExit time.Time
	end       error // why it ends where it is not stopped; nil: vm.ErrReset
	startErr  error
	closeErr  error

	once    sync.Once
	stopped chan struct{}
	reason  error
	done    chan struct{}
}

const fakeMemory, fakeRing = 16 << 20, 8 << 10

func newFake(t *testing.T, guest func(w *shm.Writer, stopped <-chan struct{})) *fake {
	t.Helper()
	return newFakeOf(t, fakeRing, guest)
}

// newFakeOf returns one with a ring of its own size.
func newFakeOf(t *testing.T, ring uint64, guest func(w *shm.Writer, stopped <-chan struct{})) *fake {
	t.Helper()
	layout, err := x86.Board{}.Layout(fakeMemory, ring)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{guest: guest, closed: make(chan struct{}), stopped: make(chan struct{}), done: make(chan struct{})}
	if f.memory, err = guestmem.New(guestmem.Region{Base: layout.Reserved.Base, Mem: make([]byte, ring)}); err != nil {
		t.Fatal(err)
	}
	if f.ring, err = f.memory.Window(layout.Reserved.Base, ring); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fake) Memory() *guestmem.Memory { return f.memory }
func (f *fake) Start() error {
	if f.startErr != nil {
		return f.startErr
	}
	w, err := shm.NewWriter(f.ring)
	if err != nil {
		return err
	}
	go func() {
		defer close(f.done)
		f.guest(w, f.stopped)
		f.Stop(cmp.Or(f.end, vm.ErrReset))
	}()
	return nil
}
func (f *fake) Stop(reason error)                { f.once.Do(func() { f.reason = reason; close(f.stopped) }) }
func (f *fake) Done() <-chan struct{}            { return f.done }
func (f *fake) Wait() error                      { <-f.done; return f.reason }
func (f *fake) Exits() iter.Seq2[string, uint64] { return f.exits }
func (f *fake) FirstExit() time.Time             { return f.firstExit }
func (f *fake) Close() error                     { close(f.closed); return f.closeErr }
func (f *fake) Bell() <-chan struct{}            { return f.bell }
func (f *fake) Rings() uint64                    { return 0 }

// config is a run of the fake machine.
func (f *fake) config() run.Config {
	cfg := run.Config{
		VM:      vm.Config{Kernel: x86.ELF{}, Memory: fakeMemory, Reserved: f.ring.Len()},
		Timeout: 60 * time.Second,
		Grace:   -1,
	}
	cfg.NewMachine = func(c vm.Config) (run.Machine, error) {
		f.console = c.Console
		return f, nil
	}
	cfg.FlushLimit = 100 * time.Millisecond
	return cfg
}

// floods writes output as long as there is room, until it is stopped.
func floods(w *shm.Writer, stopped <-chan struct{}) {
	for {
		select {
		case <-stopped:
			return
		default:
			_ = w.TryWrite(shm.Stdout, []byte("output\n"))
		}
	}
}

// noRoom has no room for output, ever.
func noRoom(_ time.Duration, m shm.Message) monitor.Verdict {
	if m.Type == shm.Stdout {
		return monitor.NotNow
	}
	return monitor.Continue
}

// ended runs and wants an end within the hang limit, whatever the readers of its output do.
func ended(t *testing.T, ctx context.Context, cfg run.Config, outcome run.Outcome) *run.Result {
	t.Helper()
	start := time.Now()
	r := run.Run(ctx, cfg)
	if r.Outcome != outcome || time.Since(start) > hangLimit {
		t.Errorf("%s after %v (%s), want %s", r.Outcome, time.Since(start), r.Reason, outcome)
	}
	return r
}

// A reader that takes nothing moves no deadline.
func TestDeadlinesDoNotWaitForReaders(t *testing.T) {
	t.Parallel()
	for _, grace := range []time.Duration{-1, 100 * time.Millisecond} {
		cfg := newFake(t, floods).config()
		cfg.Timeout, cfg.Grace, cfg.OnMessage = 300*time.Millisecond, grace, noRoom
		r := ended(t, t.Context(), cfg, run.TimedOut)
		if r.Omitted.OutputBytes == 0 {
			t.Error("nothing was left out")
		}
	}
}

// Nor does it keep signals and a cancelled context from being seen.
func TestSignalsDoNotWaitForReaders(t *testing.T) {
	t.Parallel()
	cfg := newFake(t, floods).config()
	cfg.OnMessage, cfg.Grace = noRoom, time.Hour
	signals := make(chan os.Signal, 2)
	cfg.Signals = signals
	cfg.OnStart = func() {
		signals <- syscall.SIGTERM
		signals <- syscall.SIGINT // does not wait for the grace
	}
	if r := ended(t, t.Context(), cfg, run.Interrupted); r.ExitCode != 143 {
		t.Errorf("exit code %d", r.ExitCode)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cfg = newFake(t, floods).config()
	cfg.OnMessage, cfg.OnStart = noRoom, cancel
	ended(t, ctx, cfg, run.Interrupted)
}

// What a guest reported behind output that nobody takes is seen, and is not all that happened.
func TestExitBehindOutputThatNobodyTakes(t *testing.T) {
	cfg := newFake(t, func(w *shm.Writer, _ <-chan struct{}) {
		code := shm.EncodeCode(0)
		_ = w.Write(shm.Stdout, []byte("output"))
		_ = w.Write(shm.Exit, code[:])
	}).config()
	cfg.OnMessage = noRoom
	r := ended(t, t.Context(), cfg, run.Failed)
	if r.GuestExitCode == nil || *r.GuestExitCode != 0 || r.ExitCode != 125 || r.Omitted.OutputBytes != 6 ||
		!strings.Contains(r.Reason, "6 bytes of its output had no reader") {
		t.Errorf("%+v", r)
	}
}

// A reader that makes room again gets all of it, in order, also after the guest's end.
func TestOutputWaitsForItsReader(t *testing.T) {
	const pieces = 2000 // more than the ring has room for
	cfg := newFake(t, func(w *shm.Writer, _ <-chan struct{}) {
		for i := range pieces {
			_ = w.WriteWait(context.Background(), shm.Stdout, []byte{byte(i), byte(i >> 8)})
		}
		code := shm.EncodeCode(3)
		_ = w.WriteWait(context.Background(), shm.Exit, code[:])
	}).config()
	cfg.FlushLimit, cfg.Poll = time.Minute, time.Millisecond
	next, offered := 0, 0
	cfg.OnMessage = func(_ time.Duration, m shm.Message) monitor.Verdict {
		if m.Type != shm.Stdout {
			return monitor.Continue
		}
		if offered++; offered%100 == 0 {
			return monitor.NotNow
		}
		if i := int(m.Payload[0]) | int(m.Payload[1])<<8; i != next {
			t.Errorf("piece %d, want %d", i, next)
		}
		next++
		return monitor.Continue
	}
	if r := ended(t, t.Context(), cfg, run.Exited); r.ExitCode != 3 || next != pieces || r.Omitted.OutputBytes != 0 {
		t.Errorf("%d pieces, %+v", next, r)
	}
}

// The building of a machine may wait for ever: for a file, say. The run does not.
func TestStuckBuildDoesNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		timeout time.Duration
		signal  os.Signal
		cancel  bool
		want    run.Outcome
	}{
		"deadline": {timeout: 100 * time.Millisecond, want: run.TimedOut},
		"signal":   {timeout: time.Hour, signal: syscall.SIGTERM, want: run.Interrupted},
		"context":  {timeout: time.Hour, cancel: true, want: run.Interrupted},
	} {
		f := newFake(t, floods)
		answer := make(chan struct{})
		cfg := f.config()
		machine := cfg.VM
		cfg.VM, cfg.Timeout = vm.Config{}, tc.timeout
		cfg.Prepare = func() (vm.Config, io.Closer, error) {
			<-answer
			return machine, io.NopCloser(nil), nil
		}
		signals := make(chan os.Signal, 1)
		cfg.Signals = signals
		if tc.signal != nil {
			signals <- tc.signal
		}
		ctx, cancel := context.WithCancel(t.Context())
		if tc.cancel {
			cancel()
		}
		r := ended(t, ctx, cfg, tc.want)
		if r.Reason == "" {
			t.Errorf("%s: no reason", name)
		}
		cancel()
		close(answer) // what is built now is taken down
		select {
		case <-f.closed:
		case <-time.After(hangLimit):
			t.Errorf("%s: the machine was not closed", name)
		}
	}
}

func TestPrepareFails(t *testing.T) {
	cfg := newFake(t, floods).config()
	failure := errors.New("no such kernel")
	cfg.Prepare = func() (vm.Config, io.Closer, error) { return vm.Config{}, nil, failure }
	if r := ended(t, t.Context(), cfg, run.Failed); !errors.Is(r.Err, failure) || r.ExitCode != 125 {
		t.Errorf("%+v", r)
	}
}
