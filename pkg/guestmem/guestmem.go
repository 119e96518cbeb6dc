// Package guestmem gives the host access to guest RAM: sorted, disjoint
// regions of guest-physical addresses, accessed only by checked copies
// and atomics. It is the only place with unsafe access to guest RAM, and
// nothing here returns a reference to memory that the guest can change.
//
// Multi-byte atomics are little-endian, as is every architecture that the project runs on.
package guestmem

import (
	"errors"
	"fmt"
	"io"
)

// Addr is a guest-physical address in bytes.
type Addr uint64

// String returns the address in hex.
func (a Addr) String() string { return fmt.Sprintf("0x%x", uint64(a)) }

// Region is one range of guest RAM: Mem backs the
// guest-physical addresses [Base, Base+len(Mem)).
type Region struct {
	Base Addr
	Mem  []byte
}

// Errors returned by New and the accessors, for errors.Is.
var (
	ErrEmpty      = errors.New("empty region")
	ErrUnsorted   = errors.New("regions are not sorted by address")
	ErrOverlap    = errors.New("regions overlap")
	ErrWraps      = errors.New("region passes the end of the address space")
	ErrOutside    = errors.New("address range is not guest RAM")
	ErrMisaligned = errors.New("address is not aligned")
)

// Memory is all of a guest's RAM. It may be used concurrently;
// only the atomics order accesses between guest and host.
type Memory struct{ s space }

// New returns a Memory of regions that are sorted by address and
// disjoint. They may touch: an access then crosses from one to the
// next. It fails with ErrEmpty, ErrUnsorted, ErrOverlap or ErrWraps.
func New(regions ...Region) (*Memory, error) {
	if len(regions) == 0 {
		return nil, fmt.Errorf("guest memory: %w: no region given", ErrEmpty)
	}
	s := make(space, 0, len(regions))
	for i, r := range regions {
		start, n := uint64(r.Base), uint64(len(r.Mem))
		switch {
		case n == 0:
			return nil, fmt.Errorf("guest memory: %w: region %d at %v", ErrEmpty, i, r.Base)
		case start+n-1 < start:
			return nil, fmt.Errorf("guest memory: %w: region %d at %v, 0x%x bytes", ErrWraps, i, r.Base, n)
		}
		if i > 0 {
			prev := s[i-1]
			switch {
			case start < prev.start:
				return nil, fmt.Errorf("guest memory: %w: region %d at %v comes after 0x%x", ErrUnsorted, i, r.Base, prev.start)
			case start <= prev.last():
				return nil, fmt.Errorf("guest memory: %w: region %d at %v, the one before it ends at 0x%x",
					ErrOverlap, i, r.Base, prev.last())
			}
		}
		s = append(s, segment{start: start, mem: r.Mem})
	}
	return &Memory{s}, nil
}

// Read copies len(dst) bytes at a into dst: all of them, or none and ErrOutside.
func (m *Memory) Read(dst []byte, a Addr) error { return m.s.read(dst, uint64(a)) }

// Write copies src to a: all of it, or nothing and ErrOutside.
func (m *Memory) Write(src []byte, a Addr) error { return m.s.write(src, uint64(a)) }

// Fill reads n bytes from r straight into guest memory at a. It fails with
// ErrOutside before it reads anything, or with r's error (io.ErrUnexpectedEOF
// if r ends early); then the range's contents are undefined.
func (m *Memory) Fill(r io.Reader, a Addr, n uint64) error {
	return m.s.each(uint64(a), n, func(mem []byte) error {
		for len(mem) > 0 {
			part := mem[:min(len(mem), readyStep)]
			populateSmall(part)
			_, err := io.ReadFull(r, part)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
			mem = mem[len(part):]
		}
		return nil
	})
}

// Populate allocates host pages for the n bytes at a, for a guest that will soon touch them all: huge pages if
// possible. It is only a hint and changes no content; if a part of the range is not RAM, it does nothing.
func (m *Memory) Populate(a Addr, n uint64) {
	_ = m.s.each(uint64(a), n, func(mem []byte) error {
		populate(mem)
		return nil
	})
}

// readyStep is how many bytes are made ready at a time to be filled, which is cheaper than page by page: that
// much at most is spent on a file that ends early, and waited for when a start is given up.
const readyStep = 64 << 20

// Writer returns a writer that fills the n bytes at a in order. It must not be used concurrently. It fails with
// ErrOutside for bytes that do not fit or are not RAM.
func (m *Memory) Writer(a Addr, n uint64) io.Writer {
	return &writer{m: m, at: a, left: n}
}

type writer struct {
	m     *Memory
	at    Addr
	left  uint64
	ready uint64 // how many of the bytes that are left have been made ready
}

func (w *writer) Write(p []byte) (int, error) {
	n := uint64(len(p))
	if n > w.left {
		return 0, fmt.Errorf("%w: 0x%x bytes at %v, the room ends after 0x%x", ErrOutside, n, w.at, w.left)
	}
	if n > w.ready {
		w.ready = min(w.left, max(n, readyStep))
		_ = w.m.s.each(uint64(w.at), w.ready, func(mem []byte) error { populateSmall(mem); return nil })
	}
	if err := w.m.Write(p, w.at); err != nil {
		return 0, err
	}
	w.at += Addr(n)
	w.left -= n
	w.ready -= n
	return len(p), nil
}

// Uint32 returns the aligned 32-bit word at a. It fails with ErrOutside or ErrMisaligned.
func (m *Memory) Uint32(a Addr) (Uint32, error) { return m.s.uint32(uint64(a)) }

// Uint64 returns the aligned 64-bit word at a. It fails with ErrOutside or ErrMisaligned.
func (m *Memory) Uint64(a Addr) (Uint64, error) { return m.s.uint64(uint64(a)) }

// Window is a range of guest-physical memory without a gap, addressed from 0. It may cross regions; an access costs one
// copy for each region that it touches.
type Window struct {
	s    space
	size uint64
}

// Window returns the n bytes at a, or ErrOutside if any of them is not RAM.
func (m *Memory) Window(a Addr, n uint64) (*Window, error) {
	w := &Window{size: n}
	err := m.s.each(uint64(a), n, func(mem []byte) error {
		w.s = append(w.s, segment{start: w.s.end(), mem: mem})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Len returns the window's size in bytes.
func (w *Window) Len() uint64 { return w.size }

// Read copies len(dst) bytes at off into dst: all of them, or none and ErrOutside.
func (w *Window) Read(dst []byte, off uint64) error { return w.s.read(dst, off) }

// Write copies src to off: all of it, or nothing and ErrOutside.
func (w *Window) Write(src []byte, off uint64) error { return w.s.write(src, off) }

// Sub returns the n bytes at off as a window of their own, or ErrOutside.
func (w *Window) Sub(off, n uint64) (*Window, error) {
	m := Memory{w.s}
	return m.Window(Addr(off), n)
}

// Uint32 returns the aligned 32-bit word at off. It fails with ErrOutside or ErrMisaligned.
func (w *Window) Uint32(off uint64) (Uint32, error) { return w.s.uint32(off) }

// Uint64 returns the aligned 64-bit word at off. It fails with ErrOutside or ErrMisaligned.
func (w *Window) Uint64(off uint64) (Uint64, error) { return w.s.uint64(off) }
