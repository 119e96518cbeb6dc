package vm

import (
	"debug/elf"
	"fmt"
	"io"
	"time"

	"github.com/bobuhiro11/gokvm/kvm"
)

const elfMachine = elf.EM_AARCH64

// Capabilities lists what a machine needs of KVM on this architecture.
func Capabilities() []Capability {
	return []Capability{
		{"KVM_CAP_USER_MEMORY", kvm.CapUserMemory},
		{"KVM_CAP_IMMEDIATE_EXIT", kvm.CapImmediateExit},
	}
}

// NewPlan fails with ErrArch: arm64 machines are not built yet.
func NewPlan(memory, reserved uint64) (Plan, error) {
	return Plan{}, fmt.Errorf("%w: arm64", ErrArch)
}

// OpenKernel fails with ErrArch.
func OpenKernel(io.ReaderAt) (Loader, error) { return nil, fmt.Errorf("%w: arm64", ErrArch) }

// KernelSpeed fails with ErrArch.
func KernelSpeed(device string, limit time.Duration) (float64, error) {
	return 0, fmt.Errorf("%w: arm64", ErrArch)
}

func newArch(Config) (Plan, arch, error) {
	return Plan{}, nil, fmt.Errorf("%w: arm64", ErrArch)
}
