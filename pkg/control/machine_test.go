package control_test

import (
	"context"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// hangLimit is for what would take for ever.
const hangLimit = 30 * time.Second

// machine is one whose guest is a function of this process.
type machine struct {
	memory *guestmem.Memory
	ring   *guestmem.Window
	guest  func(context.Context, *shm.Writer)
	ctx    context.Context // ends when the machine is stopped
	stop   context.CancelCauseFunc
	done   chan struct{}
}

func newMachine(cfg vm.Config, guest func(context.Context, *shm.Writer)) (run.Machine, error) {
	layout, err := cfg.Kernel.Board().Layout(cfg.Memory, cfg.Reserved)
	if err != nil {
		return nil, err
	}
	at, size := layout.Reserved.Base, layout.Reserved.Size
	memory, err := guestmem.New(guestmem.Region{Base: at, Mem: make([]byte, size)})
	if err != nil {
		return nil, err
	}
	m := &machine{memory: memory, guest: guest, done: make(chan struct{})}
	m.ctx, m.stop = context.WithCancelCause(context.Background())
	m.ring, err = memory.Window(at, size)
	return m, err
}

func (m *machine) Start() error {
	writer, err := shm.NewWriter(m.ring)
	if err != nil {
		return err
	}
	go func() {
		defer close(m.done)
		m.guest(m.ctx, writer)
		m.stop(vm.ErrPowerOff)
	}()
	return nil
}

func (m *machine) Memory() *guestmem.Memory         { return m.memory }
func (m *machine) Stop(reason error)                { m.stop(reason) }
func (m *machine) Done() <-chan struct{}            { return m.done }
func (m *machine) Wait() error                      { <-m.done; return context.Cause(m.ctx) }
func (m *machine) Bell() <-chan struct{}            { return nil }
func (m *machine) Rings() uint64                    { return 0 }
func (m *machine) Exits() iter.Seq2[string, uint64] { return nil }
func (m *machine) FirstExit() time.Time             { return time.Time{} }
func (m *machine) Close() error                     { return nil }

// start starts a run with a guest and a server at a path, and returns when it can be asked. What it returns waits for
// the run's end and closes the server.
func start(path string, guest func(context.Context, *shm.Writer), changes ...func(*run.Config)) (
	end func(context.Context) (*run.Result, error), err error) {
	registry := prometheus.NewRegistry()
	server, err := control.Listen(control.Config{Path: path, Version: "v1", Metrics: registry})
	if err != nil {
		return nil, err
	}
	serves := make(chan struct{})
	results := make(chan *run.Result, 1)
	go func() {
		cfg := run.Config{
			ID: "0123456789abcdef", Name: "a test", KernelName: "none",
			VM:         vm.Config{Kernel: x86.ELF{}, Memory: 64 << 20, Reserved: 1 << 20},
			NewMachine: func(cfg vm.Config) (run.Machine, error) { return newMachine(cfg, guest) },
			Timeout:    hangLimit,
			Grace:      -1,
			Registry:   registry,
			OnLive: func(l *run.Live) {
				server.Serve(l)
				close(serves)
			},
		}
		for _, change := range changes {
			change(&cfg)
		}
		results <- run.Run(context.Background(), cfg)
	}()
	<-serves
	return func(ctx context.Context) (*run.Result, error) {
		r := <-results
		return r, server.Close(ctx)
	}, nil
}

// folder is one whose path a socket's address has room for.
func folder(t testing.TB) string {
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// serve starts a run that the test's end stops, and returns its client.
func serve(t *testing.T, guest func(context.Context, *shm.Writer), changes ...func(*run.Config)) control.Client {
	t.Helper()
	client := control.Client{Path: filepath.Join(folder(t), "run.sock")}
	end, err := start(client.Path, guest, changes...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Stop(context.Background(), true) // it may be over
		ctx, cancel := context.WithTimeout(context.Background(), hangLimit)
		defer cancel()
		if _, err := end(ctx); err != nil || ctx.Err() != nil {
			t.Error(err, ctx.Err())
		}
	})
	return client
}

// idle is a guest that does nothing.
func idle(ctx context.Context, _ *shm.Writer) { <-ctx.Done() }

// until waits for something to come true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(hangLimit); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal(what)
		}
	}
}

func TestMain(m *testing.M) {
	if path := os.Getenv(strangerAsks); path != "" {
		stranger(path)
	}
	goleak.VerifyTestMain(m)
}
