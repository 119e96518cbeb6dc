package guestmem

// Cursor reads a window and remembers the segment that it read last, so that a read in the same segment costs a bounds
// check and a copy. It must not be used concurrently.
type Cursor struct {
	s     space
	start uint64 // of the remembered segment
	mem   []byte // the remembered segment
}

// Cursor returns a cursor over the window.
func (w *Window) Cursor() Cursor { return Cursor{s: w.s} }

// Read copies len(dst) bytes at off into dst: all of them, or none and ErrOutside.
func (c *Cursor) Read(dst []byte, off uint64) error {
	if o := off - c.start; o < uint64(len(c.mem)) && uint64(len(dst)) <= uint64(len(c.mem))-o {
		copy(dst, c.mem[o:])
		return nil
	}
	return c.readSlow(dst, off)
}

// Read16 is Read for 16 bytes, returned by value.
func (c *Cursor) Read16(off uint64) (b [16]byte, err error) {
	if o := off - c.start; o < uint64(len(c.mem)) && uint64(len(c.mem))-o >= 16 {
		return [16]byte(c.mem[o:]), nil
	}
	err = c.readSlow(b[:], off)
	return b, err
}

func (c *Cursor) readSlow(dst []byte, off uint64) error {
	if i := c.s.find(off); i >= 0 {
		c.start, c.mem = c.s[i].start, c.s[i].mem
	}
	return c.s.read(dst, off)
}
