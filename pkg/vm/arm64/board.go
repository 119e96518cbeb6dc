// Package arm64 is the arm64 machine: where its memory and devices lie, the kernels that boot on it, what they
// boot with, and the few devices that a back end without any needs.
//
// Addresses of RAM and devices are those of QEMU's virt machine, so that one board serves both back ends.
package arm64

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Where things are: QEMU, hw/arm/virt.c.
const (
	Distributor    = 0x08000000
	Redistributors = 0x080a0000
	UART           = 0x09000000
	RAM            = 0x40000000

	distributorSize = 64 << 10
	uartSize        = 4 << 10
	uartInterrupt   = 1
	uartClock       = 24_000_000 // Hz
)

// FirmwareRoom is how much of the start of RAM is left to who runs the machine, until the kernel knows its
// memory: QEMU writes a device tree of its own there.
const FirmwareRoom = 2 << 20

// MaxCPUs is how many processors the redistributors have room for, up to the UART.
const maxCPUs = (UART - Redistributors) / fdt.RedistributorSize

// maxMemory is the end of the 40 bits of guest-physical addresses that every host has: KVM API, 4.2, the
// default machine type.
const maxMemory = 1<<40 - RAM

// The reserved part's limits are those of x86_64.
const (
	minReserved = 8 << 10
	maxReserved = 1 << 30
	maxBeside   = 64 << 10 // of what else lies with the ring
)

// Board implements vm.Board for arm64.
type Board struct {
	// Reservation is how the kernel is kept off the reserved memory.
	Reservation fdt.Reservation
}

// Arch implements vm.Board.
func (Board) Arch() string { return "arm64" }

// MaxCPUs implements vm.Board.
func (Board) MaxCPUs() int { return maxCPUs }

// Layout implements vm.Board. RAM is one range, and the reserved part its end. It fails with vm.ErrConfig.
func (Board) Layout(memory, reserved uint64) (vm.Layout, error) {
	if memory == 0 {
		memory = vm.DefaultMemory
	}
	if reserved == 0 {
		reserved = vm.DefaultReserved
	}
	switch {
	case (memory|reserved)%fdt.PageSize != 0:
		return vm.Layout{}, fmt.Errorf("%w: %d bytes of memory with %d reserved, both have to be multiples of %d",
			vm.ErrConfig, memory, reserved, fdt.PageSize)
	case reserved < minReserved || reserved > maxReserved+maxBeside:
		return vm.Layout{}, fmt.Errorf("%w: %d bytes reserved, it can be %d (8 KiB) to %d (1 GiB)",
			vm.ErrConfig, reserved, minReserved, maxReserved)
	case memory > maxMemory:
		return vm.Layout{}, fmt.Errorf("%w: %d bytes of memory, at most %d are addressable",
			vm.ErrConfig, memory, uint64(maxMemory))
	case reserved > memory || memory-reserved < FirmwareRoom:
		return vm.Layout{}, fmt.Errorf("%w: %d bytes of memory with %d reserved, %d have to be left",
			vm.ErrConfig, memory, reserved, FirmwareRoom)
	}
	ram := vm.Span{Base: RAM, Size: memory - reserved}
	return vm.Layout{RAM: []vm.Span{ram}, Reserved: vm.Span{Base: ram.Base + guestmem.Addr(ram.Size), Size: reserved}}, nil
}

// Load implements vm.Board: Linux, Documentation/arch/arm64/booting.rst.
func (board Board) Load(ram *guestmem.Memory, b vm.Boot) (vm.Entry, error) {
	layout, err := board.Layout(b.Memory, b.Reserved)
	if err != nil {
		return vm.Entry{}, err
	}
	if b.Emulated && b.Initrd != nil {
		populate(ram, layout.RAM[0])
	}
	k, err := b.Kernel.Load(ram)
	if err != nil {
		return vm.Entry{}, err
	}
	initrd, err := loadInitrd(ram, layout, k, b.Initrd)
	if err != nil {
		return vm.Entry{}, err
	}
	tree, err := board.tree(layout, initrd, b.Config)
	if err != nil {
		return vm.Entry{}, err
	}
	top := initrd.Base
	at := (top - guestmem.Addr(len(tree))) &^ (treeAlign - 1)
	if at > top || at < k.End {
		return vm.Entry{}, fmt.Errorf("%w: the device tree: %w: %d bytes between the kernel, which ends at %v, and %v",
			vm.ErrKernel, vm.ErrRoom, len(tree), k.End, top)
	}
	if err := ram.Write(tree, at); err != nil {
		return vm.Entry{}, fmt.Errorf("%w: the device tree: %w", vm.ErrSetup, err)
	}
	return vm.Entry{PC: k.Entry, Arg: at}, nil
}

// populate takes the faults of what Linux touches first, as x86_64's board does: where it lies, with what it allocates
// behind itself, and the end of its RAM, where the initrd is and its map of pages goes, 64 bytes for each page of
// 4 KiB.
func populate(ram *guestmem.Memory, all vm.Span) {
	const size, initrd, most = 64 << 20, 16 << 20, 64 << 20
	ram.Populate(all.Base+FirmwareRoom, min(size, all.Size-FirmwareRoom))
	top := min(all.Size/64+initrd, most, all.Size)
	ram.Populate(all.Base+guestmem.Addr(all.Size-top), top)
}

// treeAlign is more than the 8 bytes that a kernel wants: nothing else shares the tree's pages.
const treeAlign = fdt.PageSize

// loadInitrd writes the initrd to the top of RAM and returns where it is. It is an empty span there where there is
// none.
func loadInitrd(ram *guestmem.Memory, layout vm.Layout, k vm.Kernel, initrd vm.Initrd) (vm.Span, error) {
	end := layout.Reserved.Base
	if initrd == nil {
		return vm.Span{Base: end}, nil
	}
	size := initrd.Size()
	if free := uint64(end - min(end, k.End+fdt.MaxSize)); size > free {
		return vm.Span{}, fmt.Errorf("%w: the initrd: %w: it takes %d bytes, %d are free above the kernel",
			vm.ErrKernel, vm.ErrRoom, size, free)
	}
	at := vm.Span{Base: (end - guestmem.Addr(size)) &^ (fdt.PageSize - 1), Size: size}
	n, err := initrd.WriteTo(ram.Writer(at.Base, size))
	if err == nil && uint64(n) != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return vm.Span{}, fmt.Errorf("%w: the initrd, %d of %d bytes: %w", vm.ErrSetup, n, size, err)
	}
	return at, nil
}

// tree is the device tree of a machine.
func (board Board) tree(l vm.Layout, initrd vm.Span, c vm.Config) ([]byte, error) {
	seed := make([]byte, 64)
	if _, err := rand.Read(seed); err != nil {
		return nil, fmt.Errorf("%w: random numbers for the guest: %w", vm.ErrSetup, err)
	}
	t, err := c.Topology.WithDefaults()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrConfig, err)
	}
	m := fdt.Machine{
		Ring:        span(l.Reserved),
		Reservation: board.Reservation,
		Topology:    t,
		Devices: fdt.Devices{
			Distributor:    fdt.Range{Start: Distributor, Size: distributorSize},
			Redistributors: fdt.Range{Start: Redistributors, Size: maxCPUs * fdt.RedistributorSize},
			UART:           fdt.Range{Start: UART, Size: uartSize},
			UARTInterrupt:  uartInterrupt,
			UARTClock:      uartClock,
			Timer:          fdt.Timer{Secure: 13, Physical: 14, Virtual: 11, Hypervisor: 10},
		},
		Bootargs:  c.Cmdline,
		Initrd:    span(initrd),
		RNGSeed:   seed[8:],
		KASLRSeed: binary.LittleEndian.Uint64(seed),
	}
	for _, s := range l.RAM {
		m.RAM = append(m.RAM, span(s))
	}
	if t.Nodes > 0 {
		nodes, err := l.Nodes(t.Nodes)
		if err != nil {
			return nil, err
		}
		for _, spans := range nodes {
			var memory []fdt.Range
			for _, s := range spans {
				memory = append(memory, span(s))
			}
			m.Nodes = append(m.Nodes, memory)
		}
	}
	tree, err := m.Encode()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrCmdline, err)
	}
	return tree, nil
}

func span(s vm.Span) fdt.Range { return fdt.Range{Start: uint64(s.Base), Size: s.Size} }
