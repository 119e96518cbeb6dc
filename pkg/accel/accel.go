// Package accel chooses the back end that runs a guest on this host.
package accel

import (
	"errors"
	"fmt"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

// Mode is what a user asks for.
type Mode string

// The modes. Auto takes KVM where it can be used for the guest, else the emulator.
const (
	Auto     Mode = "auto"
	KVM      Mode = "kvm"
	Emulator Mode = "emulator"
)

// Modes lists the modes' names.
func Modes() []string { return []string{string(Auto), string(KVM), string(Emulator)} }

// UsableSpeed is the least at which Linux boots in seconds on KVM, in instructions a second: in KVM that QEMU
// emulates, which runs some 40 million, it takes some ten.
const UsableSpeed = 20e6

// speedLimit bounds the look at KVM's speed. One that is usable needs 50 ms of it at most.
const speedLimit = 200 * time.Millisecond

// Guest is what is to run, as far as the choice depends on it.
type Guest struct {
	Board vm.Board // what it is built for
	// KernelMode says that the guest spends its time in kernel mode, as Linux does: a KVM that emulates
	// that, instruction by instruction, is of no use to it.
	KernelMode bool
}

// ErrSlow is a KVM that works, but emulates a guest's kernel mode.
var ErrSlow = errors.New("KVM emulates the guest's kernel mode here")

// Choose returns the back end for a guest, and where Auto could not take KVM a sentence that says so and why.
// There is always one: where Auto finds none, or there is no such mode, it is one that fails and says why.
func Choose(mode Mode, g Guest) (b vm.Backend, note string) {
	switch mode {
	case KVM:
		return kvm.Backend{}, ""
	case Emulator:
		return qemu.Backend{}, ""
	case Auto, "":
	default:
		return nothing{fmt.Errorf("%w: accelerator %q", vm.ErrConfig, mode)}, ""
	}
	whyNot := CheckKVM(g)
	if whyNot == nil {
		return kvm.Backend{}, ""
	}
	emulator := qemu.Backend{}
	if _, err := emulator.Find(g.Board); err != nil {
		return nothing{fmt.Errorf("nothing here can run the guest. KVM: %w. The emulator: %w", whyNot, err)}, ""
	}
	return emulator, fmt.Sprintf("QEMU's emulator runs the guest, more slowly than hardware and with other timing, for "+
		"KVM can't be used: %v", whyNot)
}

// nothing is the back end where there is none.
type nothing struct{ why error }

func (nothing) Name() string { return "none" }

func (n nothing) New(vm.Spec, func(error)) (vm.Instance, error) { return nil, n.why }

// CheckKVM reports what keeps KVM from being used for a guest: nil, one of its back end's errors, or ErrSlow.
func CheckKVM(g Guest) error {
	b := kvm.Backend{}
	if err := b.Check(g.Board); err != nil || !g.KernelMode {
		return err
	}
	// A fast KVM looks slow where the host was busy elsewhere, and never the other way round.
	const looks = 3
	best := 0.0
	for range looks {
		speed, err := b.KernelSpeed(speedLimit)
		if err != nil {
			return err
		}
		if best = max(best, speed); best >= UsableSpeed {
			return nil
		}
	}
	if best < UsableSpeed {
		return fmt.Errorf("%w: %.2g million instructions a second, Linux wants %.0f", ErrSlow, best/1e6, UsableSpeed/1e6)
	}
	return nil
}
