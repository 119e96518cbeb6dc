// Package accel chooses the back end that runs a guest on this host.
package accel

import (
	"errors"
	"fmt"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

// Mode is what a user asks for.
type Mode string

// The modes. Auto uses KVM if it can be used for the guest, otherwise the emulator.
const (
	Auto     Mode = "auto"
	KVM      Mode = "kvm"
	Emulator Mode = "emulator"
)

// Modes returns the modes' names.
func Modes() []string { return []string{string(Auto), string(KVM), string(Emulator)} }

// UsableSpeed is the lowest speed of KVM, in instructions a second, at which Linux boots in seconds: in KVM that QEMU
// emulates, which runs about 40 million, a boot takes about ten.
const UsableSpeed = 20e6

// speedLimit bounds the look at KVM's speed. One that is usable needs 50 ms of it at most.
const speedLimit = 200 * time.Millisecond

// Guest describes what is to run, as far as the choice depends on it.
type Guest struct {
	Board vm.Board // the board that it is built for
	// Linux reports whether the guest is Linux, and not the embedded guest. It spends its time in kernel mode, so a KVM
	// that emulates that, instruction by instruction, is of no use to it. And the device tree decides how its processes
	// map the ring.
	Linux bool
}

// uncachedRing reports whether the guest maps the ring as memory that is not cached.
func (g Guest) uncachedRing() bool {
	board, ok := g.Board.(arm64.Board)
	return ok && g.Linux && board.Reservation == fdt.NoMap
}

// ErrSlow means that KVM works, but emulates a guest's kernel mode.
var ErrSlow = errors.New("KVM emulates the guest's kernel mode here")

// Choose returns the back end for a guest. If Auto can't use KVM, note is a sentence that says so and why. The back end
// is never nil: if Auto finds none, or the mode does not exist, it is one that fails with the reason.
func Choose(mode Mode, g Guest) (b vm.Backend, note string) {
	switch mode {
	case KVM:
		// KVM itself would run the guest, and the host would read what its caches had before.
		if err := checkRing(g); errors.Is(err, kvm.ErrIncoherent) {
			return failed{kvm.Backend{}.Name(), err}, ""
		}
		return kvm.Backend{}, ""
	case Emulator:
		return qemu.Backend{}, ""
	case Auto, "":
	default:
		return failed{"none", fmt.Errorf("%w: accelerator %q", vm.ErrConfig, mode)}, ""
	}
	whyNot := CheckKVM(g)
	if whyNot == nil {
		return kvm.Backend{}, ""
	}
	emulator := qemu.Backend{}
	if _, err := emulator.Find(g.Board); err != nil {
		return failed{"none", fmt.Errorf("nothing here can run the guest. KVM: %w. The emulator: %w", whyNot, err)}, ""
	}
	return emulator, fmt.Sprintf("QEMU's emulator runs the guest, more slowly than hardware and with other timing, for "+
		"KVM can't be used: %v", whyNot)
}

// failed is the back end where there is none.
type failed struct {
	name string
	why  error
}

func (f failed) Name() string { return f.name }

func (f failed) New(vm.Spec, func(error)) (vm.Instance, error) { return nil, f.why }

// checkRing reports why KVM's guest and this host can't share the ring.
func checkRing(g Guest) error {
	if !g.uncachedRing() {
		return nil
	}
	return kvm.Backend{}.CheckUncached()
}

// CheckKVM reports why KVM can't be used for a guest: one of its back end's errors, or ErrSlow. It returns nil if it
// can.
func CheckKVM(g Guest) error {
	b := kvm.Backend{}
	if err := b.Check(g.Board); err != nil || !g.Linux {
		return err
	}
	if err := checkRing(g); err != nil {
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
