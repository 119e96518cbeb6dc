package run

import (
	"context"
	"errors"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// registerReader is a Machine whose processors' registers can be read.
type registerReader interface {
	Registers(ctx context.Context) ([]vm.Registers, error)
}

// namesLimit is how long the names of the guest's functions are waited for: to find them in its memory takes some
// 100 ms, once.
const namesLimit = 2 * time.Second

// Registers returns what is in the registers of each of the guest's processors, and what names the addresses of its
// kernel's functions: it returns "" for others, and for all if the guest is no Linux, or its kernel's symbols were not
// found. The run goes on and waits for nothing. Registers fails with ErrOver, vm.ErrNoRegisters, vm.ErrNotRunning or
// ctx's error.
func (l *Live) Registers(ctx context.Context) ([]vm.Registers, func(address uint64) string, error) {
	reader, ok := l.run.machine.(registerReader)
	if !ok {
		return nil, nil, vm.ErrNoRegisters
	}
	all, err := reader.Registers(ctx)
	if errors.Is(err, vm.ErrNotRunning) && l.ended() { // else it is about to begin, or to end
		err = ErrOver
	}
	if err != nil {
		return nil, nil, err
	}
	return all, l.names(ctx).Name, nil
}

// names asks the run's observer for the names of the kernel's functions.
func (l *Live) names(ctx context.Context) introspect.Symbols {
	o := l.observer.Load()
	if o == nil {
		return introspect.Symbols{}
	}
	ctx, cancel := context.WithTimeout(ctx, namesLimit)
	defer cancel()
	answer := make(chan introspect.Symbols, 1)
	select {
	case o.namings <- answer:
	case <-o.done:
		return introspect.Symbols{}
	case <-ctx.Done():
		return introspect.Symbols{}
	}
	select {
	case s := <-answer:
		return s
	case <-o.done:
	case <-ctx.Done():
	}
	return introspect.Symbols{}
}
