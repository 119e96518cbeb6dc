package kvm

import (
	"fmt"
	"time"

	"github.com/bobuhiro11/gokvm/kvm"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Capabilities lists what a machine needs of KVM on this architecture.
func Capabilities() []Capability {
	return []Capability{
		{"KVM_CAP_USER_MEMORY", kvm.CapUserMemory},
		{"KVM_CAP_IMMEDIATE_EXIT", kvm.CapImmediateExit},
	}
}

// newProcessor fails with vm.ErrArch: there is no arm64 board yet.
func newProcessor(s vm.Spec, _ func(error)) (processor, error) {
	return nil, fmt.Errorf("%w: KVM of an arm64 host can't run %s guests", vm.ErrArch, s.Board.Arch())
}

// KernelSpeed fails with vm.ErrArch.
func (b Backend) KernelSpeed(time.Duration) (float64, error) {
	return 0, fmt.Errorf("%w: arm64", vm.ErrArch)
}
