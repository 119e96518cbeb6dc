package kvm

import (
	"errors"
	"fmt"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// KernelSpeed measures how fast KVM runs a guest's kernel mode, in instructions a second, by a counted loop
// in a machine of its own. It takes at most limit and then returns an upper bound.
func (b Backend) KernelSpeed(limit time.Duration) (float64, error) {
	const rounds = 500_000
	m, err := vm.New(vm.Config{Kernel: countedLoop(rounds), Backend: b, Memory: 16 << 20, Reserved: 1 << 20})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := m.Start(); err != nil {
		return 0, errors.Join(err, m.Close())
	}
	errSlow := errors.New("too slow to wait for")
	timer := time.AfterFunc(limit, func() { m.Stop(errSlow) })
	defer timer.Stop()
	reason := m.Wait()
	took := time.Since(start)
	if err := m.Close(); err != nil {
		return 0, err
	}
	if !errors.Is(reason, vm.ErrReset) && !errors.Is(reason, errSlow) {
		return 0, fmt.Errorf("measuring the guest's speed: %w", reason)
	}
	return 2 * rounds / took.Seconds(), nil
}
