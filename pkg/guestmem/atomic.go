package guestmem

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Uint64 is an aligned 64-bit word of guest memory. Load has acquire order and Store release
// order, on the host and towards the guest.
type Uint64 struct{ p *uint64 }

// Load fetches the word once.
func (u Uint64) Load() uint64 { return atomic.LoadUint64(u.p) }

// Store publishes v: what this goroutine wrote before is visible to whoever loads v.
func (u Uint64) Store(v uint64) { atomic.StoreUint64(u.p, v) }

// Uint32 is an aligned 32-bit word of guest memory, with the memory orders of Uint64.
type Uint32 struct{ p *uint32 }

// Load fetches the word once.
func (u Uint32) Load() uint32 { return atomic.LoadUint32(u.p) }

// Store publishes v.
func (u Uint32) Store(v uint32) { atomic.StoreUint32(u.p, v) }

// Byte fetches byte i of the word, 0 ≤ i < 4, counted from the lowest address.
func (u Uint32) Byte(i uint) byte { return byte(u.Load() >> (8 * (i & 3))) }

// SetByte publishes v in byte i of the word, 0 ≤ i < 4, by a store of that byte alone: host and guest may each
// set bytes of the same word, and a guest's process may have it as Device memory, which takes no
// read-modify-write.
func (u Uint32) SetByte(i uint, v byte) { storeByte((*byte)(unsafe.Add(unsafe.Pointer(u.p), i&3)), v) }

func (s space) uint32(addr uint64) (Uint32, error) {
	p, err := s.word(addr, 4)
	return Uint32{(*uint32)(p)}, err
}

func (s space) uint64(addr uint64) (Uint64, error) {
	p, err := s.word(addr, 8)
	return Uint64{(*uint64)(p)}, err
}

// word returns a pointer to the size bytes at addr, which must lie in one segment and be
// aligned where the host maps them: only then is an access atomic.
func (s space) word(addr, size uint64) (unsafe.Pointer, error) {
	i := s.find(addr)
	if i < 0 {
		return nil, fmt.Errorf("%w: %d-byte word at 0x%x", ErrOutside, size, addr)
	}
	off := addr - s[i].start
	if uint64(len(s[i].mem))-off < size {
		return nil, fmt.Errorf("%w: %d-byte word at 0x%x", ErrOutside, size, addr)
	}
	p := unsafe.Pointer(&s[i].mem[off])
	if uint64(uintptr(p))%size != 0 {
		return nil, fmt.Errorf("%w: %d-byte word at 0x%x, host address %p", ErrMisaligned, size, addr, p)
	}
	return p, nil
}
