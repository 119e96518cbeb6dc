// Package e820 lays out an x86_64 guest's memory and describes it to the kernel: the E820 map,
// in which no entry covers the ring at the top of RAM.
//
// Addresses are guest-physical; addresses and sizes are in bytes.
package e820

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The fixed places of the map.
const (
	PageSize = 4 << 10

	// LowEnd is where conventional memory ends: the EBDA and the video hole follow.
	LowEnd = 0x9fc00
	// HighStart is where RAM continues after the 640 KiB-1 MiB hole.
	HighStart = 1 << 20
	// MMIOStart and MMIOEnd bound the hole below 4 GiB, for the APICs and other devices.
	// RAM that does not fit below it continues after it.
	MMIOStart = 3 << 30
	MMIOEnd   = 4 << 30
)

// The limits of sizes.
const (
	MinRing   = 8 << 10
	MaxRing   = 1 << 30
	MaxBeside = 64 << 10 // of what else lies with it
	MinRAM    = 2 << 20  // without the ring
	MaxMemory = 1 << 40
)

// Errors returned by New, for errors.Is.
var (
	ErrAlign    = errors.New("size is not a multiple of the page size")
	ErrRingSize = errors.New("ring size is out of range")
	ErrMemory   = errors.New("memory size is out of range")
)

// Type is an E820 entry's type: ACPI specification, table 15.4.
type Type uint32

// The types that the map uses.
const (
	RAM      Type = 1
	Reserved Type = 2
)

// Range is a run of addresses.
type Range struct{ Start, Size uint64 }

// End returns the address after the range.
func (r Range) End() uint64 { return r.Start + r.Size }

// Entry is one entry of the map.
type Entry struct {
	Range
	Type Type
}

// Layout is a guest's memory: what the host has to back, and what the guest is told about it.
type Layout struct {
	Low  Range // RAM from 0; backs the holes below 1 MiB too
	High Range // RAM from 4 GiB; empty if all of it fits below the MMIO hole
	Ring Range // not in Map
	Map  []Entry
}

// New lays out memory bytes of RAM, of which the top ring bytes are the ring. It fails with
// ErrAlign, ErrRingSize or ErrMemory.
//
// The ring lies at the end of the last run of RAM. If that run is the one above 4 GiB and is shorter than the ring, the
// ring takes all of it and extends it: the bytes that it needs move up from below the MMIO hole.
func New(memory, ring uint64) (*Layout, error) {
	switch {
	case ring < MinRing || ring > MaxRing+MaxBeside:
		return nil, fmt.Errorf("%w: %d bytes, it can be %d (8 KiB) to %d (1 GiB)", ErrRingSize, ring, MinRing, MaxRing)
	case ring%PageSize != 0:
		return nil, fmt.Errorf("%w: ring of %d bytes, pages are %d", ErrAlign, ring, PageSize)
	case memory%PageSize != 0:
		return nil, fmt.Errorf("%w: memory of %d bytes, pages are %d", ErrAlign, memory, PageSize)
	case memory > MaxMemory:
		return nil, fmt.Errorf("%w: %d bytes, it can be at most %d (1 TiB)", ErrMemory, memory, uint64(MaxMemory))
	case memory < ring+MinRAM:
		return nil, fmt.Errorf("%w: %d bytes, a ring of %d and %d (2 MiB) of RAM beside it take %d", ErrMemory, memory,
			ring, MinRAM, ring+MinRAM)
	}
	ram := memory - ring
	l := &Layout{Low: Range{0, min(ram, MMIOStart)}, High: Range{MMIOEnd, ram - min(ram, MMIOStart)}}
	if memory <= MMIOStart {
		l.Ring = Range{l.Low.End(), ring}
	} else {
		l.Ring = Range{l.High.End(), ring}
	}
	l.Map = []Entry{
		{Range{0, LowEnd}, RAM},
		{Range{LowEnd, 0xa0000 - LowEnd}, Reserved},
		{Range{HighStart, l.Low.End() - HighStart}, RAM},
	}
	if l.High.Size > 0 {
		l.Map = append(l.Map, Entry{l.High, RAM})
	}
	return l, nil
}

// The size of boot_params: Linux boot protocol, "The zero page".
const (
	BootParamsSize = 4096

	offCount   = 0x1e8 // u8, entries in the table
	offTable   = 0x2d0 // 20 bytes an entry: u64 address, u64 size, u32 type
	entrySize  = 20
	maxEntries = 128
)

// ErrBootParams means that the zero page can't hold the map.
var ErrBootParams = errors.New("map does not fit the zero page")

// Encode writes the map into a zero page. It fails with ErrBootParams if either is too large or too small.
func Encode(entries []Entry, bootParams []byte) error {
	if len(entries) > maxEntries || len(bootParams) < BootParamsSize {
		return fmt.Errorf("%w: %d entries into %d bytes, at most %d into %d", ErrBootParams, len(entries), len(bootParams),
			maxEntries, BootParamsSize)
	}
	bootParams[offCount] = byte(len(entries))
	for i, e := range entries {
		b := bootParams[offTable+i*entrySize:]
		binary.LittleEndian.PutUint64(b, e.Start)
		binary.LittleEndian.PutUint64(b[8:], e.Size)
		binary.LittleEndian.PutUint32(b[16:], uint32(e.Type))
	}
	return nil
}
