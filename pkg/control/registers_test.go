package control_test

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// shows is a machine whose registers can be read.
type shows struct {
	run.Machine
	registers func(context.Context) ([]vm.Registers, error)
}

func (s shows) Registers(ctx context.Context) ([]vm.Registers, error) { return s.registers(ctx) }

func withRegisters(registers func(context.Context) ([]vm.Registers, error)) func(*run.Config) {
	return func(cfg *run.Config) {
		newMachine := cfg.NewMachine
		cfg.NewMachine = func(cfg vm.Config) (run.Machine, error) {
			m, err := newMachine(cfg)
			return shows{m, registers}, err
		}
	}
}

// Registers come as they were read, the largest values too, and those that could not be read.
func TestRegisters(t *testing.T) {
	want := []vm.Registers{
		{CPU: 0, State: vm.Halted, PC: 1<<64 - 1, SP: 1<<53 + 1,
			Values: []vm.Register{{Name: "rip", Value: 1<<64 - 1}, {Name: "rsp", Value: 1<<53 + 1}, {Name: "rax"}}},
		{CPU: 1, Err: errors.New("no answer")},
	}
	c := serve(t, idle, withRegisters(func(context.Context) ([]vm.Registers, error) { return want, nil }))
	got, name, err := c.Registers(t.Context())
	if err != nil || !reflect.DeepEqual(got, want) || name(1) != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// One client at a time reads registers, and a machine that does not show them keeps nobody: neither that client for
// long, nor others, nor the run's end.
func TestRegistersOneAtATime(t *testing.T) {
	t.Parallel() // it waits
	begun := make(chan struct{}, 1)
	c := control.Client{Path: filepath.Join(folder(t), "run.sock")}
	end, err := start(c.Path, idle, withRegisters(func(ctx context.Context) ([]vm.Registers, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}))
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	ask := func() {
		_, _, err := c.Registers(t.Context())
		first <- err
	}
	go ask()
	<-begun
	if _, _, err := c.Registers(t.Context()); !errors.Is(err, control.ErrBusy) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	var e *control.Error
	if err := <-first; !errors.As(err, &e) || e.Code != control.CodeFailed {
		t.Errorf("the first one: %v", err)
	}
	go ask()
	<-begun
	if err := c.Stop(t.Context(), true); err != nil {
		t.Error(err)
	}
	if _, err := end(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-first; !errors.Is(err, control.ErrOver) {
		t.Errorf("at the end: %v", err)
	}
}

// A back end that shows none says so.
func TestNoRegisters(t *testing.T) {
	c := serve(t, idle)
	if _, _, err := c.Registers(t.Context()); err == nil || err.Error() != vm.ErrNoRegisters.Error() {
		t.Error(err)
	}
}
