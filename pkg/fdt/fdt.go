// Package fdt describes an arm64 guest's machine to its kernel: the flattened device tree, in which the
// ring at the top of RAM is reserved. It also reads from a tree what that says of memory.
//
// Addresses are guest-physical; addresses and sizes are in bytes. Sections are the Devicetree
// Specification's, v0.4; a binding is a file in Linux's Documentation/devicetree/bindings.
package fdt

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// The limits of what a tree can describe.
const (
	PageSize = 4 << 10
	// MaxSize is how large an encoded tree may be: Linux, Documentation/arch/arm64/booting.rst, "Setup the
	// device tree", which also wants it at an address that is a multiple of 8.
	MaxSize = 2 << 20
	// MaxBootargs is a byte less than COMMAND_LINE_SIZE: Linux, arch/arm64/include/uapi/asm/setup.h.
	MaxBootargs = 2047
	// MaxCPUs is what one GICv3 serves in KVM and in QEMU.
	MaxCPUs = 512
	// RedistributorSize is what each processor takes of the redistributors: two frames of 64 KiB; GICv3
	// architecture specification, "GIC memory-mapped register access".
	RedistributorSize = 128 << 10

	maxPPI = 15  // GICv3: INTIDs 16 to 31
	maxSPI = 987 // 32 to 1019
)

// What Encode refuses, for errors.Is.
var (
	ErrMemory   = errors.New("memory can't be described")
	ErrCPUs     = errors.New("processors can't be described")
	ErrDevice   = errors.New("device can't be described")
	ErrBootargs = errors.New("command line can't be passed on")
	ErrSize     = errors.New("device tree is too large")
)

// Range is a run of addresses.
type Range struct{ Start, Size uint64 }

// End is the address behind the range.
func (r Range) End() uint64 { return r.Start + r.Size }

func (r Range) overlaps(s Range) bool { return r.Start < s.End() && s.Start < r.End() }

func (r Range) String() string { return fmt.Sprintf("0x%x bytes at 0x%x", r.Size, r.Start) }

// Reservation is how a kernel is kept from using the ring as its own memory, and so how a guest's
// processes can map it.
type Reservation int

const (
	// NoMap takes the ring out of the kernel's memory. Processes can map it through /dev/mem on every
	// kernel, as Device memory: by naturally aligned accesses of at most 8 bytes.
	NoMap Reservation = iota
	// Cacheable reserves the ring as a part of the kernel's memory. Processes map it as Normal memory, and
	// only where the kernel was built without STRICT_DEVMEM.
	Cacheable
)

// Machine is what a tree describes.
type Machine struct {
	RAM         []Range // without the ring; sorted
	Ring        Range   // behind the last of RAM
	Reservation Reservation
	Topology    topology.Topology // of the processors
	Nodes       [][]Range         // the memory of each of its NUMA nodes: RAM, and the ring in the last
	Devices     Devices

	Bootargs  string // the kernel's command line
	Initrd    Range  // where in RAM; its size 0: none
	RNGSeed   []byte // for the kernel's random numbers; empty: none
	KASLRSeed uint64 // for where the kernel puts itself; 0: none
}

// Devices says where the devices are, and by which interrupts they call. None has a default.
type Devices struct {
	Distributor    Range  // of the GICv3
	Redistributors Range  // RedistributorSize for each processor, one behind the other
	UART           Range  // a PL011
	UARTInterrupt  uint32 // an SPI, counted from 0
	UARTClock      uint32 // Hz
	Timer          Timer
}

// Timer has the interrupts of the processors' timers: PPIs, counted from 0.
type Timer struct{ Secure, Physical, Virtual, Hypervisor uint32 }

// check reports what can't be described.
func (m Machine) check() error {
	if err := m.checkMemory(); err != nil {
		return err
	}
	if err := m.checkDevices(); err != nil {
		return err
	}
	if err := m.checkTopology(); err != nil {
		return err
	}
	switch {
	case len(m.Bootargs) > MaxBootargs:
		return fmt.Errorf("%w: %d bytes, a kernel takes at most %d", ErrBootargs, len(m.Bootargs), MaxBootargs)
	case strings.ContainsAny(m.Bootargs, "\x00\n"):
		return fmt.Errorf("%w: %q has a NUL or a newline in it", ErrBootargs, m.Bootargs)
	}
	return nil
}

func (m Machine) checkMemory() error {
	if len(m.RAM) == 0 {
		return fmt.Errorf("%w: there is no RAM", ErrMemory)
	}
	at := uint64(0)
	for _, r := range append(slices.Clone(m.RAM), m.Ring) {
		switch {
		case r.Size == 0 || (r.Start|r.Size)%PageSize != 0:
			return fmt.Errorf("%w: %s, it has to be whole pages of %d", ErrMemory, r, PageSize)
		case r.End() < r.Start:
			return fmt.Errorf("%w: %s, which ends beyond the last address", ErrMemory, r)
		case r.Start < at:
			return fmt.Errorf("%w: %s begins below 0x%x, where what comes before it ends", ErrMemory, r, at)
		}
		at = r.End()
	}
	in := func(r Range) bool { return m.Initrd.Start >= r.Start && m.Initrd.End() <= r.End() }
	if m.Initrd.Size > 0 && (m.Initrd.End() < m.Initrd.Start || !slices.ContainsFunc(m.RAM, in)) {
		return fmt.Errorf("%w: initrd of %s, which is not in RAM", ErrMemory, m.Initrd)
	}
	return nil
}

func (m Machine) checkDevices() error {
	d := m.Devices
	taken := append(slices.Clone(m.RAM), m.Ring)
	for _, part := range []struct {
		name string
		Range
	}{{"distributor", d.Distributor}, {"redistributors", d.Redistributors}, {"UART", d.UART}} {
		if part.Size == 0 || part.End() < part.Start {
			return fmt.Errorf("%w: %s of %s", ErrDevice, part.name, part.Range)
		}
		if i := slices.IndexFunc(taken, part.overlaps); i >= 0 {
			return fmt.Errorf("%w: %s of %s overlaps %s", ErrDevice, part.name, part.Range, taken[i])
		}
		taken = append(taken, part.Range)
	}
	if d.UARTInterrupt > maxSPI || d.UARTClock == 0 {
		return fmt.Errorf("%w: UART with SPI %d and a clock of %d Hz; SPIs are 0 to %d, and it needs a clock",
			ErrDevice, d.UARTInterrupt, d.UARTClock, maxSPI)
	}
	if ppi := max(d.Timer.Secure, d.Timer.Physical, d.Timer.Virtual, d.Timer.Hypervisor); ppi > maxPPI {
		return fmt.Errorf("%w: timer with PPI %d, they are 0 to %d", ErrDevice, ppi, maxPPI)
	}
	return nil
}
