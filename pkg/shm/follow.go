package shm

import (
	"fmt"
	"hash/crc32"
	"io"
)

const (
	// followChunk is how much of a ring a Follower reads at once, in bytes; larger messages are read by themselves.
	followChunk = 256 << 10
	// safeQuarters is how far behind write_ptr a Follower may be, in quarters of the ring. Further back the writer may be
	// at work on its next message, over what the ring's reader has taken.
	safeQuarters = 3
)

// Follower reads a live ring as an onlooker. It only reads, so nobody waits for it: what the ring's reader has taken is
// written over, and a Follower that is slower than the writer misses it, and says how much. Its source is read and not
// mapped: a file that gets shorter is an error.
//
// What looks broken is looked at again in the next call, which has to find it unchanged: a writer may have been at work
// there.
type Follower struct {
	src      io.ReaderAt
	size     uint64 // bytes of the region
	capacity uint64
	pos      uint64
	buf      []byte
	want     uint64 // bytes of the message at pos, where it takes more than a chunk

	doubted    bool   // the last call found something at doubtAt that is to be looked at again
	doubtAt    uint64 // a position
	doubtWrite uint64 // write_ptr then
}

// Sight is what a Follower saw in one call.
type Sight struct {
	Missed    uint64 // bytes that were written over before they could be read, ahead of this call's messages
	Restarted bool   // the ring was begun anew, and is read from there
	Fault     Fault  // what broke after this call's messages; Kind is NoFault if nothing did
	Drops     uint64 // messages that there was no room for, as the header has it
	More      bool   // there is more to be read now
}

// NewFollower returns a follower of the ring in the first size bytes of src. It begins with the first unread message,
// or where all is set with the first of all. Beside NewSnapshot's and Rewind's errors it returns a *Fault for a
// capacity that can't be right.
func NewFollower(src io.ReaderAt, size uint64, all bool) (*Follower, error) {
	s, err := NewSnapshot(src, size)
	if err != nil {
		return nil, err
	}
	f := &Follower{src: src, size: size, capacity: uint64(s.header.Capacity)}
	switch {
	case !s.plausible():
		return nil, &Fault{Kind: BadCapacity, Value: f.capacity, Limit: MaxCapacity}
	case s.avail < f.capacity:
		return nil, s.cut()
	case all:
		return f, s.Rewind()
	}
	f.pos = s.header.ReadPtr // if that can't be, Poll says so
	return f, nil
}

// Poll passes on the messages that came since the last call, or some of them. A payload is valid until fn returns. Poll
// returns fn's error, or the source's.
func (f *Follower) Poll(fn func(Message) error) (s Sight, err error) {
	h, err := f.header()
	if err != nil {
		return s, err
	}
	s.Drops = h.Drops
	unread := h.WritePtr - f.pos
	switch {
	case f.changed(h), int64(unread) < 0:
		f.restart(h, &s)
		return s, nil
	case unread == 0:
		f.doubted = false
		return s, nil
	case unread > f.capacity:
		f.skip(h, Fault{Kind: WritePtrAhead, Pos: f.pos, Value: h.WritePtr, Limit: f.capacity, Lost: f.capacity}, &s)
		return s, nil
	}
	chunk := f.buffer(min(unread, max(followChunk, f.want)))
	if err := f.copyOut(chunk); err != nil {
		return s, err
	}
	// What was copied is good if it was not written over meanwhile.
	if h, err = f.header(); err != nil {
		return s, err
	}
	if f.overtaken(h) {
		f.skip(h, Fault{}, &s)
		return s, nil
	}
	return s, f.parse(chunk, unread, h, fn, &s)
}

// parse passes on the messages that are whole in a chunk, of which unread bytes are in the ring.
func (f *Follower) parse(chunk []byte, unread uint64, h Header, fn func(Message) error, s *Sight) error {
	if len(chunk) > followChunk { // for one message, unless it has become another one
		first := decodeMessageHeader([MessageHeaderSize]byte(chunk))
		chunk = chunk[:min(uint64(len(chunk)), max(followChunk, first.size()))]
	}
	for len(chunk) > 0 {
		m := messageHeader{}
		if len(chunk) >= MessageHeaderSize {
			m = decodeMessageHeader([MessageHeaderSize]byte(chunk))
		}
		switch size := m.size(); {
		case unread < MessageHeaderSize || size > unread:
			f.skip(h, messageFault(m, f.pos, unread, f.capacity), s)
			return nil
		case uint64(len(chunk)) < size || len(chunk) < MessageHeaderSize:
			s.More, f.want = true, size // the next chunk begins with it
			return nil
		}
		payload := chunk[MessageHeaderSize:m.size()]
		crcOK := crc32.ChecksumIEEE(payload) == m.crc
		if !crcOK && !f.twice(h) {
			return nil
		}
		f.doubted, f.want = false, 0
		f.pos += m.size()
		unread -= m.size()
		chunk = chunk[m.size():]
		if err := fn(Message{Type: m.typ, CRCOK: crcOK, Payload: payload}); err != nil {
			return err
		}
	}
	s.More = unread > 0
	return nil
}

// changed reports whether the header is another ring's.
func (f *Follower) changed(h Header) bool {
	capacity := uint64(h.Capacity)
	return h.Magic == Magic && capacity != f.capacity && capacity > 0 && capacity <= min(f.size-HeaderSize, MaxCapacity)
}

// overtaken reports whether the writer has been, or may be, where the follower reads. It has if it is a lap ahead.
// Before that it may only write over what the ring's reader has taken, and hardly any message takes a quarter of the
// ring. A writer that has not moved since the last call is not at work.
func (f *Follower) overtaken(h Header) bool {
	switch behind := h.WritePtr - f.pos; {
	case behind > f.capacity:
		return true
	case behind <= f.capacity/4*safeQuarters, int64(h.ReadPtr-f.pos) <= 0:
		return false
	}
	return !f.doubted || f.doubtAt != f.pos || f.doubtWrite != h.WritePtr
}

// skip goes on where a message begins for certain: behind what the ring's reader has taken, or at write_ptr. What is in
// between was missed; it is a fault where the writer can't have been at work there.
func (f *Follower) skip(h Header, fault Fault, s *Sight) {
	behind := h.WritePtr - f.pos
	read := h.WritePtr-h.ReadPtr <= f.capacity && int64(h.ReadPtr-f.pos) > 0 // by the ring's reader
	lapped := behind > f.capacity && read
	if !lapped && !f.twice(h) {
		return
	}
	next := h.WritePtr
	if read {
		next = h.ReadPtr
	}
	lost := next - f.pos
	f.pos, f.want, f.doubted, s.More = next, 0, false, true
	if fault.Kind == NoFault || lapped || fault.Kind != WritePtrAhead && behind > f.capacity/4*safeQuarters {
		s.Missed = lost
		return
	}
	fault.Lost = min(lost, f.capacity)
	s.Fault = fault
}

// begin moves to the first unread message, or to write_ptr where the positions can't be right, and reports whether they
// can.
func (f *Follower) begin(h Header) bool {
	f.pos, f.want, f.doubted = h.ReadPtr, 0, false
	if h.WritePtr-h.ReadPtr > f.capacity {
		f.pos = h.WritePtr
		return false
	}
	return true
}

// restart goes on with a ring that was begun anew.
func (f *Follower) restart(h Header, s *Sight) {
	if !f.twice(h) {
		return
	}
	behind := Fault{Kind: WritePtrBehind, Pos: f.pos, Value: h.WritePtr, Limit: f.pos}
	if f.changed(h) {
		f.capacity = uint64(h.Capacity)
	}
	s.More = true
	if s.Restarted = f.begin(h) && h.Magic == Magic; !s.Restarted {
		s.Fault = behind
	}
}

// twice reports whether the last call was in doubt here, too.
func (f *Follower) twice(h Header) bool {
	if f.doubted && f.doubtAt == f.pos {
		return true
	}
	f.doubted, f.doubtAt, f.doubtWrite = true, f.pos, h.WritePtr
	return false
}

// header reads the ring's header. Its positions are words of 8 bytes at multiples of 8, which no kernel copies in
// smaller pieces.
func (f *Follower) header() (Header, error) {
	var raw [HeaderSize]byte
	if _, err := io.ReadFull(io.NewSectionReader(f.src, 0, HeaderSize), raw[:]); err != nil {
		return Header{}, fmt.Errorf("ring header: %w", err)
	}
	return DecodeHeader(raw), nil
}

// buffer returns n bytes of the follower's buffer.
func (f *Follower) buffer(n uint64) []byte {
	if uint64(len(f.buf)) < n {
		f.buf = make([]byte, n)
	}
	return f.buf[:n]
}

// copyOut copies len(dst) ≤ capacity bytes of data at the follower's position.
func (f *Follower) copyOut(dst []byte) error {
	for index := f.pos % f.capacity; len(dst) > 0; index = 0 {
		n := min(uint64(len(dst)), f.capacity-index)
		if _, err := io.ReadFull(io.NewSectionReader(f.src, int64(HeaderSize+index), int64(n)), dst[:n]); err != nil {
			return fmt.Errorf("ring data at 0x%x: %w", index, err)
		}
		dst = dst[n:]
	}
	return nil
}
