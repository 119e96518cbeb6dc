package guestmem

import "fmt"

// segment is a run of bytes at [start, start+len(mem)) of an address space; never empty.
type segment struct {
	start uint64
	mem   []byte
}

func (g segment) last() uint64 { return g.start + uint64(len(g.mem)) - 1 }

// space is a list of segments, sorted and disjoint.
type space []segment

// end is the address behind the last segment, 0 for an empty space.
func (s space) end() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].last() + 1
}

// find returns the index of the segment that holds addr, or -1.
func (s space) find(addr uint64) int {
	lo, hi := 0, len(s)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if s[mid].last() < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(s) || addr < s[lo].start {
		return -1
	}
	return lo
}

// each calls fn with the n bytes at addr, a piece for each segment, in order. Where a part of
// the range is not backed it calls fn for none of it and returns ErrOutside.
func (s space) each(addr, n uint64, fn func(mem []byte) error) error {
	if n == 0 {
		return nil
	}
	first := s.find(addr)
	if first < 0 || !s.backed(first, addr, n) {
		return fmt.Errorf("%w: 0x%x bytes at 0x%x", ErrOutside, n, addr)
	}
	for i := first; n > 0; i++ {
		mem := s[i].mem[addr-s[i].start:]
		if uint64(len(mem)) > n {
			mem = mem[:n]
		}
		if err := fn(mem); err != nil {
			return err
		}
		addr += uint64(len(mem))
		n -= uint64(len(mem))
	}
	return nil
}

// backed reports whether n bytes at addr, which segment i holds, have no gap; n > 0.
func (s space) backed(i int, addr, n uint64) bool {
	last := addr + n - 1
	if last < addr {
		return false
	}
	for s[i].last() < last {
		if i+1 == len(s) || s[i+1].start != s[i].last()+1 {
			return false
		}
		i++
	}
	return true
}

func (s space) read(dst []byte, addr uint64) error {
	return s.each(addr, uint64(len(dst)), func(mem []byte) error {
		load(dst[:len(mem)], mem)
		dst = dst[len(mem):]
		return nil
	})
}

func (s space) write(src []byte, addr uint64) error {
	return s.each(addr, uint64(len(src)), func(mem []byte) error {
		store(mem, src[:len(mem)])
		src = src[len(mem):]
		return nil
	})
}
