package shm

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrNoRing means that an image has no ring: it is too small for a header, or has another magic.
var ErrNoRing = errors.New("no ring")

// Snapshot is a ring in an image that no guest writes to any more: a memory image,
// a core, a recording. Unlike a Reader it has no host that knows the truth, so it
// takes geometry and positions from the header, as far as they are possible.
type Snapshot struct {
	header Header
	from   uint64 // where the first message is that Drain passes on
	src    io.ReaderAt
	avail  uint64 // bytes of data that the image holds, at most the capacity

	ahead    []byte // bytes of src from aheadOff on, read in one go
	aheadOff uint64
	buf      []byte // a payload's copy
}

// readAhead is how many bytes are read at once; larger payloads are read by themselves.
const readAhead = 64 << 10

// NewSnapshot reads the header of the ring in the first size bytes
// of src. It fails with ErrNoRing, or with src's error. A header
// that names a ring but can't be right is reported by Drain.
func NewSnapshot(src io.ReaderAt, size uint64) (*Snapshot, error) {
	if size < HeaderSize {
		return nil, fmt.Errorf("%w: the region is %d bytes, a header takes %d", ErrNoRing, size, HeaderSize)
	}
	var raw [HeaderSize]byte
	if _, err := io.ReadFull(io.NewSectionReader(src, 0, HeaderSize), raw[:]); err != nil {
		return nil, fmt.Errorf("ring header: %w", err)
	}
	s := &Snapshot{header: DecodeHeader(raw), src: src}
	s.from = s.header.ReadPtr
	if s.header.Magic != Magic {
		return s, fmt.Errorf("%w: the magic is 0x%08x, a ring's is 0x%08x", ErrNoRing, s.header.Magic, uint32(Magic))
	}
	s.avail = min(size-HeaderSize, uint64(s.header.Capacity))
	return s, nil
}

// Header returns the header as found in the image.
func (s *Snapshot) Header() Header { return s.header }

// Drops returns the header's count of dropped messages, or 0 if the
// header's capacity can't be right: then no count in it means anything.
func (s *Snapshot) Drops() uint64 {
	if !s.plausible() {
		return 0
	}
	return s.header.Drops
}

func (s *Snapshot) plausible() bool {
	return s.header.Magic == Magic && s.header.Capacity > 0 && s.header.Capacity <= MaxCapacity
}

// Drain passes the unread messages to fn in order; a payload is valid
// until fn returns. It returns nil, a *Fault if the ring is broken (after
// what could be read before it), fn's error or the image's. In addition to
// one buffer it allocates at most the bytes of the messages that it reads.
func (s *Snapshot) Drain(fn func(Message) error) error {
	capacity := uint64(s.header.Capacity)
	if !s.plausible() {
		return &Fault{Kind: BadCapacity, Value: capacity, Limit: MaxCapacity}
	}
	pos := s.from
	unread, f := checkDistance(pos, s.header.WritePtr, capacity)
	if f.Kind != NoFault {
		return &f
	}
	for unread > 0 {
		var raw [MessageHeaderSize]byte
		if unread < MessageHeaderSize {
			f = messageFault(messageHeader{}, pos, unread, capacity)
			return &f
		}
		if err := s.read(raw[:], pos); err != nil {
			return err
		}
		h := decodeMessageHeader(raw)
		if h.size() > unread {
			f = messageFault(h, pos, unread, capacity)
			return &f
		}
		if uint64(h.length) > s.avail {
			return s.cut()
		}
		if uint64(len(s.buf)) < uint64(h.length) {
			s.buf = make([]byte, h.length)
		}
		payload := s.buf[:h.length]
		if err := s.read(payload, pos+MessageHeaderSize); err != nil {
			return err
		}
		if err := fn(Message{Type: h.typ, CRCOK: crc32.ChecksumIEEE(payload) == h.crc, Payload: payload}); err != nil {
			return err
		}
		pos += h.size()
		unread -= h.size()
	}
	if s.avail < capacity {
		return s.cut()
	}
	return nil
}

// cut is the fault of an image that ends before its ring does.
func (s *Snapshot) cut() error {
	return &Fault{Kind: BadCapacity, Value: uint64(s.header.Capacity), Limit: s.avail}
}

// read copies the len(dst) ≤ capacity bytes of data at pos.
func (s *Snapshot) read(dst []byte, pos uint64) error {
	capacity := uint64(s.header.Capacity)
	for index := pos % capacity; len(dst) > 0; index = 0 {
		n := min(uint64(len(dst)), capacity-index)
		if index+n > s.avail {
			return s.cut()
		}
		if err := s.readAt(dst[:n], HeaderSize+index); err != nil {
			return fmt.Errorf("ring data at 0x%x: %w", index, err)
		}
		dst = dst[n:]
	}
	return nil
}

// readAt reads the bytes of src at off, from what was read ahead where it holds them.
func (s *Snapshot) readAt(dst []byte, off uint64) error {
	if len(dst) >= readAhead {
		_, err := io.ReadFull(io.NewSectionReader(s.src, int64(off), int64(len(dst))), dst)
		return err
	}
	if o := off - s.aheadOff; off < s.aheadOff || o+uint64(len(dst)) > uint64(len(s.ahead)) {
		if s.ahead == nil {
			s.ahead = make([]byte, 0, min(readAhead, HeaderSize+s.avail)) // an image may be a few bytes
		}
		end := min(off+readAhead, HeaderSize+s.avail)
		s.ahead = s.ahead[:end-off]
		s.aheadOff = off
		n, err := io.ReadFull(io.NewSectionReader(s.src, int64(off), int64(end-off)), s.ahead)
		s.ahead = s.ahead[:n]
		if n < len(dst) {
			return err
		}
	}
	copy(dst, s.ahead[off-s.aheadOff:])
	return nil
}

// ErrWrapped means that a ring was written to for longer than it is: where its first messages were there are others.
var ErrWrapped = errors.New("the ring has wrapped")

// Rewind makes Drain begin with the first message that was ever written, read or not. It fails with ErrWrapped where
// that is there no more.
func (s *Snapshot) Rewind() error {
	if written := s.header.WritePtr; written > uint64(s.header.Capacity) {
		return fmt.Errorf("%w: 0x%x bytes were written, its capacity is 0x%x", ErrWrapped, written, s.header.Capacity)
	}
	s.from = 0
	return nil
}
