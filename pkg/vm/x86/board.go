// Package x86 is the x86_64 board: a PC as Linux knows it, entered by the 64-bit boot protocol, with ACPI
// tables that say what is there. It is the same on every host and every back end.
package x86

import (
	"errors"
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/e820"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// maxCPUs is what 8-bit APIC IDs can name beside the broadcast and the I/O APIC.
const maxCPUs = 254

// Board is the board; it has no settings.
type Board struct{}

// Arch implements vm.Board.
func (Board) Arch() string { return "x86_64" }

// MaxCPUs implements vm.Board.
func (Board) MaxCPUs() int { return maxCPUs }

// Layout implements vm.Board. It fails with e820's errors.
func (Board) Layout(memory, reserved uint64) (vm.Layout, error) {
	l, err := newLayout(memory, reserved)
	if err != nil {
		return vm.Layout{}, err
	}
	var layout vm.Layout
	for _, r := range []e820.Range{l.Low, l.High} {
		if r.Size > 0 {
			layout.RAM = append(layout.RAM, vm.Span{Base: guestmem.Addr(r.Start), Size: r.Size})
		}
	}
	layout.Reserved = vm.Span{Base: guestmem.Addr(l.Ring.Start), Size: l.Ring.Size}
	return layout, nil
}

func newLayout(memory, reserved uint64) (*e820.Layout, error) {
	if memory == 0 {
		memory = vm.DefaultMemory
	}
	if reserved == 0 {
		reserved = vm.DefaultReserved
	}
	return e820.New(memory, reserved)
}

// Load implements vm.Board.
func (Board) Load(ram *guestmem.Memory, b vm.Boot) (vm.Entry, error) {
	layout, err := newLayout(b.Memory, b.Reserved)
	if err != nil {
		return vm.Entry{}, err
	}
	if b.Emulated && b.Initrd != nil {
		populate(ram, layout)
	}
	k, err := loadKernel(ram, b)
	if err != nil {
		return vm.Entry{}, err
	}
	initrd, err := loadInitrd(ram, layout, k, b.Initrd)
	if err != nil {
		return vm.Entry{}, err
	}
	if err := loadACPI(ram, b.Config); err != nil {
		return vm.Entry{}, err
	}
	khz, err := b.CounterKHz()
	if err != nil {
		return vm.Entry{}, err
	}
	if err := loadBootData(ram, layout, k, initrd, withClock(b.Cmdline, khz)); err != nil {
		return vm.Entry{}, err
	}
	return vm.Entry{PC: k.Entry, Arg: bootParamsAddr}, nil
}

// loadKernel unpacks a bzImage where the guest would take long to, unless it is packed in a way that only the
// guest can unpack.
func loadKernel(ram *guestmem.Memory, b vm.Boot) (vm.Kernel, error) {
	if image, ok := b.Kernel.(BzImage); ok && b.Emulated {
		if k, err := image.LoadUnpacked(ram); !errors.Is(err, ErrPayload) {
			return k, err
		}
	}
	return b.Kernel.Load(ram)
}

// populate takes the faults of what Linux touches first: where it lies, with what it allocates behind itself, and the
// end of its RAM, where the initrd is and its map of pages goes, 64 bytes for each page of 4 KiB. A process that
// emulates pays for each fault, KVM for few.
func populate(ram *guestmem.Memory, l *e820.Layout) {
	const kernel, size, initrd, most = 16 << 20, 68 << 20, 16 << 20, 64 << 20
	ram.Populate(kernel, min(size, l.Low.End()-min(kernel, l.Low.End())))
	last := l.Low
	if l.High.Size > 0 {
		last = l.High
	}
	top := min((l.Low.Size+l.High.Size)/64+initrd, most, last.Size)
	ram.Populate(guestmem.Addr(last.End()-top), top)
}

// withClock tells Linux the TSC's frequency where the machine does not, and that the TSCs run together:
// calibrating against other clocks is what can hang or go wrong where instructions are emulated, and a TSC
// that Linux distrusts leaves it a clock with steps of milliseconds. They come first: a user's own words win, and
// what stands behind "--" is not the kernel's. Linux, Documentation/admin-guide/kernel-parameters.txt.
func withClock(cmdline string, khz uint32) string {
	if khz == 0 {
		return cmdline
	}
	return fmt.Sprintf("tsc_early_khz=%d tsc=reliable %s", khz, cmdline)
}
