// Package call implements the call area: memory that a guest and its host share beside the ring, by which the guest
// calls the host. The ring goes one way; what goes to the guest goes through here, as the answer to a call.
//
// Only the guest calls, and it polls for the answer: nothing starts at the host, and nothing interrupts the guest. A
// call whose answer is not there yet waits in its slot. So the calls themselves are the order and the backpressure: the
// guest asks for bytes when it has a place for them, and asks again when it has taken what came.
//
// docs/call-area.md describes the format.
package call

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The area's header. Every field is a little-endian u32, at a multiple of its size.
const (
	Size    = 64 << 10   // bytes of the area
	Magic   = 0x4143544b // "KTCA" in memory
	Version = 1

	offMagic    = 0
	offVersion  = 4
	offSlots    = 8  // number of slots
	offAttached = 12 // the guest's: attached when it is ready to call
	offTable    = 32 // offset and size of each slot; what lies between is 0

	headerSize = 1 << 10
	tableEntry = 8
	maxSlots   = (headerSize - offTable) / tableEntry

	attached = 1
)

// A slot: a header of four u32, and room for data.
const (
	offState  = 0
	offKind   = 4
	offLength = 8  // bytes of data
	offCRC    = 12 // CRC-32 (IEEE) of the data

	SlotHeaderSize = 16

	minSlot = SlotHeaderSize + 16
)

// state says whose turn it is in a slot. The guest sets free and request, the host response.
type state = uint32

const (
	free     state = 0
	request  state = 1
	response state = 2
)

// Kind is what a call is about. Its request and its response have the same one; a response of the kind Refused has a
// text that says why there is none.
type Kind uint32

// The kinds. What they carry is beside their encodings, in message.go.
const (
	Refused Kind = 0
	Stdin   Kind = 1 // bytes for a session's stdin
	Winch   Kind = 2 // the size of a session's window
	Next    Kind = 3 // a session that the host wants
	Output  Kind = 4 // bytes of a session's output
	Closed  Kind = 5 // a session has ended
)

// String returns the kind's name.
func (k Kind) String() string {
	names := []string{"REFUSED", "STDIN", "WINCH", "NEXT", "OUTPUT", "CLOSED"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// span is where a slot lies in the area, in bytes.
type span struct{ offset, size uint32 }

// The slots that a host makes: two large ones for bytes in bulk, one for a program's name and arguments, and small
// ones, of which each session takes three.
const (
	largestSlot = 32 << 10
	largeSlot   = 16 << 10
	middleSlot  = 2 << 10
	smallSlot   = 512
	smallSlots  = 26
)

// layout is where a host puts the slots: they fill the area.
func layout() (slots []span) {
	at := uint32(headerSize)
	for _, part := range []struct{ n, size uint32 }{
		{1, largestSlot}, {1, largeSlot}, {1, middleSlot}, {smallSlots, smallSlot},
	} {
		for range part.n {
			slots = append(slots, span{at, part.size})
			at += part.size
		}
	}
	return slots
}

// Errors of both sides, for errors.Is.
var (
	ErrArea    = errors.New("this is no call area")
	ErrFormat  = errors.New("bad data in a call")
	ErrRefused = errors.New("the host refused a call")
)

// encodeHeader returns the header of an area with these slots.
func encodeHeader(slots []span) []byte {
	b := make([]byte, headerSize)
	le := binary.LittleEndian
	le.PutUint32(b[offMagic:], Magic)
	le.PutUint32(b[offVersion:], Version)
	le.PutUint32(b[offSlots:], uint32(len(slots)))
	for i, s := range slots {
		le.PutUint32(b[offTable+tableEntry*i:], s.offset)
		le.PutUint32(b[offTable+tableEntry*i+4:], s.size)
	}
	return b
}

// decodeHeader returns the slots that a header names, which may be other ones than layout's: the guest goes by the
// header. It fails with ErrArea.
func decodeHeader(b []byte, size uint64) ([]span, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || le.Uint32(b[offMagic:]) != Magic {
		return nil, fmt.Errorf("%w: its magic is not 0x%08x", ErrArea, uint32(Magic))
	}
	if v := le.Uint32(b[offVersion:]); v != Version {
		return nil, fmt.Errorf("%w of version %d: it has version %d", ErrArea, Version, v)
	}
	n := le.Uint32(b[offSlots:])
	if n == 0 || n > maxSlots {
		return nil, fmt.Errorf("%w: it has %d slots, it can have 1 to %d", ErrArea, n, maxSlots)
	}
	slots := make([]span, n)
	for i := range slots {
		s := span{le.Uint32(b[offTable+tableEntry*i:]), le.Uint32(b[offTable+tableEntry*i+4:])}
		end := uint64(s.offset) + uint64(s.size)
		if s.offset%8 != 0 || s.offset < headerSize || s.size < minSlot || end > size {
			return nil, fmt.Errorf("%w: slot %d is %d bytes at 0x%x, of %d", ErrArea, i, s.size, s.offset, size)
		}
		slots[i] = s
	}
	return slots, nil
}
