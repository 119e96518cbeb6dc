package shm

import (
	"errors"
	"fmt"
)

// ErrFault matches every Fault, for errors.Is.
var ErrFault = errors.New("the ring broke the protocol")

// FaultKind says how a ring broke the protocol. Its String
// never changes, so that it can be a metric's label.
type FaultKind uint8

// The kinds. A guest that follows the protocol causes none of them.
const (
	NoFault        FaultKind = iota
	WritePtrBehind           // write_ptr is behind the host's read position
	WritePtrAhead            // write_ptr is more than the capacity ahead of it
	BadLength                // a message is longer than the ring
	Incomplete               // a message ends after write_ptr
	HeaderChanged            // a header field that belongs to the host changed
	BadCapacity              // a snapshot's capacity is 0, over MaxCapacity or over the image
	numFaultKinds
)

// FaultKinds returns the kinds that a live ring can show.
func FaultKinds() []FaultKind {
	return []FaultKind{WritePtrBehind, WritePtrAhead, BadLength, Incomplete, HeaderChanged}
}

// String returns the kind in snake case.
func (k FaultKind) String() string {
	switch k {
	case NoFault:
		return "none"
	case WritePtrBehind:
		return "write_ptr_behind"
	case WritePtrAhead:
		return "write_ptr_ahead"
	case BadLength:
		return "bad_length"
	case Incomplete:
		return "incomplete"
	case HeaderChanged:
		return "header_changed"
	case BadCapacity:
		return "bad_capacity"
	}
	return fmt.Sprintf("FaultKind(%d)", uint8(k))
}

// Fault is one violation of the protocol.
type Fault struct {
	Kind  FaultKind
	Pos   uint64 // the read position where it was found
	Value uint64 // what was found
	Limit uint64 // what Value may not pass, or what it should have been
	Field string // the header field, of HeaderChanged
	Lost  uint64 // bytes of the ring given up, at most its capacity
}

// Error says what broke, and where.
func (f *Fault) Error() string {
	switch f.Kind {
	case WritePtrBehind:
		return fmt.Sprintf("write_ptr 0x%x is behind read_ptr 0x%x", f.Value, f.Pos)
	case WritePtrAhead:
		return fmt.Sprintf("write_ptr 0x%x is %d bytes ahead of read_ptr 0x%x, the capacity is %d", f.Value,
			f.Value-f.Pos, f.Pos, f.Limit)
	case BadLength:
		return fmt.Sprintf("the message at 0x%x says %d bytes of payload, the ring holds at most %d", f.Pos, f.Value, f.Limit)
	case Incomplete:
		return fmt.Sprintf("the message at 0x%x takes %d bytes, only %d are there", f.Pos, f.Value, f.Limit)
	case HeaderChanged:
		return fmt.Sprintf("the header's %s is 0x%x, the host wrote 0x%x", f.Field, f.Value, f.Limit)
	case BadCapacity:
		return fmt.Sprintf("the header's capacity is %d bytes, it can be 1 to %d", f.Value, f.Limit)
	}
	return f.Kind.String()
}

// Is reports whether target is ErrFault.
func (f *Fault) Is(target error) bool { return target == ErrFault }

// checkDistance judges the positions: the bytes between them are at most the capacity.
func checkDistance(pos, writePtr, capacity uint64) (unread uint64, f Fault) {
	unread = writePtr - pos
	switch {
	case unread <= capacity:
		return unread, Fault{}
	case int64(unread) < 0:
		return 0, Fault{Kind: WritePtrBehind, Pos: pos, Value: writePtr, Limit: pos}
	}
	return 0, Fault{Kind: WritePtrAhead, Pos: pos, Value: writePtr, Limit: capacity, Lost: capacity}
}

// messageFault says what is wrong with the message at pos, which is larger than the unread
// bytes: it can't be in this ring, or not all of it was written.
func messageFault(h messageHeader, pos, unread, capacity uint64) Fault {
	if h.size() > capacity {
		return Fault{Kind: BadLength, Pos: pos, Value: uint64(h.length),
			Limit: capacity - min(capacity, MessageHeaderSize), Lost: unread}
	}
	return Fault{Kind: Incomplete, Pos: pos, Value: h.size(), Limit: unread, Lost: unread}
}
