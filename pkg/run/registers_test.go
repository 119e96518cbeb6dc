package run_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// shows is a fake machine with one processor, which is at an address.
type shows struct {
	*fake
	pc uint64
}

func (s *shows) Registers(context.Context) ([]vm.Registers, error) {
	select {
	case <-s.Done():
		return nil, vm.ErrNotRunning
	default:
		return []vm.Registers{{PC: s.pc}}, nil
	}
}

// A running guest's registers come with the names of its kernel's functions, of a guest that is no Linux without.
func TestLiveRegisters(t *testing.T) {
	kernel := kerneltest.Kernel{Arch: "x86_64"}
	pc := kernel.Address(27)
	for name, tc := range map[string]struct {
		config func(*fake) run.Config
		want   string
	}{
		"Linux": {func(f *fake) run.Config { return f.withKernel(t) }, "function_bb+0x0/0x1"},
		"Linux with its System.map": {func(f *fake) run.Config {
			cfg := f.withKernel(t)
			cfg.Symbols = func() (*introspect.Kernel, error) {
				k, err := introspect.ReadSystemMap(bytes.NewReader(kernel.SystemMap()))
				return k, errors.Join(err, introspect.ErrTypes)
			}
			return cfg
		}, "function_bb+0x0/0x1"},
		"other": {(*fake).config, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, func(_ *shm.Writer, stopped <-chan struct{}) { <-stopped })
			cfg := tc.config(f)
			cfg.NewMachine = func(vm.Config) (run.Machine, error) { return &shows{f, pc}, nil }
			l, results := live(t, cfg)
			await(t, "a name", func() bool {
				all, name, err := l.Registers(t.Context())
				return err == nil && len(all) == 1 && all[0].PC == pc && name(pc) == tc.want
			})
			if err := l.Stop(true); err != nil {
				t.Fatal(err)
			}
			<-results
			if _, _, err := l.Registers(t.Context()); !errors.Is(err, run.ErrOver) {
				t.Errorf("of a run that is over: %v", err)
			}
		})
	}
}

func TestLiveNoRegisters(t *testing.T) {
	f := newFake(t, func(_ *shm.Writer, stopped <-chan struct{}) { <-stopped })
	l, results := live(t, f.config())
	if _, _, err := l.Registers(t.Context()); !errors.Is(err, vm.ErrNoRegisters) {
		t.Error(err)
	}
	if err := l.Stop(true); err != nil {
		t.Fatal(err)
	}
	<-results
}

// The embedded guest's registers, while it runs and when it was stopped.
func TestRegistersOfARun(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		l, results := live(t, run.Config{VM: vm.Config{Kernel: vmtest.Demo(t, on.Arch), Backend: on.Backend,
			Cmdline: "demo.scenario=ok demo.steps=100000 demo.step_ms=1"}})
		await(t, "a message", func() bool { return l.Status().Kept > 0 })
		all, name, err := l.Registers(t.Context())
		if err != nil || len(all) != 1 || all[0].Err != nil || all[0].PC == 0 || name(all[0].PC) != "" {
			t.Errorf("%+v, %v", all, err)
		}
		if err := l.Stop(true); err != nil {
			t.Fatal(err)
		}
		<-results
		if _, _, err := l.Registers(t.Context()); !errors.Is(err, run.ErrOver) {
			t.Errorf("of a run that is over: %v", err)
		}
	})
}
