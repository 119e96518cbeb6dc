package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// countedLoop is a guest that counts down in ring 0 and resets the machine.
var countedLoop = []byte{
	0xb9, 0, 0, 0, 0, // mov ecx, rounds
	0xff, 0xc9, // dec ecx
	0x75, 0xfc, // jnz to the dec
	0xb0, 0xfe, // mov al, 0xfe
	0xe6, 0x64, // out 0x64, al
	0xeb, 0xfe, // jmp to itself
}

// KernelSpeed measures how fast KVM runs a guest's kernel mode, in instructions a second, by a counted loop
// in a machine of its own. It takes at most limit and then returns an upper bound.
func (b Backend) KernelSpeed(limit time.Duration) (float64, error) {
	const rounds = 500_000
	code := append(x86.Code(nil), countedLoop...)
	binary.LittleEndian.PutUint32(code[1:], rounds)
	m, err := vm.New(vm.Config{Kernel: code, Backend: b, Memory: 16 << 20, Reserved: 1 << 20})
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
