// Package shm implements the message ring that a guest and its host share: the wire format, the host's live Reader, the
// drain of a snapshot, the guest's Writer and the control bytes.
//
// The ring is a region of guest memory: a 40-byte header, then capacity bytes of data. Both
// positions count bytes from the start of the run and only grow; a position's place in the
// data is position % capacity, and whatever reaches the end continues at the start. A message
// is a 16-byte header and its payload, without padding. Every field is little-endian.
//
// The format is ktstr 0.4.9's (its shm_ring.rs).
package shm

import (
	"encoding/binary"
	"fmt"
)

// The region's header: ktstr shm_ring.rs, ShmRingHeader.
const (
	HeaderSize = 40         // bytes
	Magic      = 0x53544d52 // "STMR"
	Version    = 1

	offMagic    = 0  // u32
	offVersion  = 4  // u32
	offCapacity = 8  // u32, bytes of data behind the header
	offControl  = 12 // 4 bytes: see Control
	offWritePtr = 16 // u64, bytes written by the guest
	offReadPtr  = 24 // u64, bytes read by the host
	offDrops    = 32 // u64, messages that the guest had no room for
)

// MaxCapacity is the largest data area that the format allows, in bytes: ktstr shm_ring.rs,
// MAX_SHM_CAPACITY.
const MaxCapacity = 1 << 30

// A message's header: ktstr shm_ring.rs, ShmMessage.
const (
	MessageHeaderSize = 16 // bytes

	offType   = 0 // u32
	offLength = 4 // u32, bytes of payload
	offCRC    = 8 // u32, CRC-32 (IEEE) of the payload; 4 bytes of zeros follow
)

// Header is the region's header as found in memory; it may be invalid.
type Header struct {
	Magic    uint32
	Version  uint32
	Capacity uint32  // bytes
	Control  [4]byte // dump request, stall request, signal slots 0 and 1
	WritePtr uint64  // bytes
	ReadPtr  uint64  // bytes
	Drops    uint64  // messages
}

// NewHeader returns the header of a fresh ring in a region of size
// bytes. If the region is smaller than a header, the capacity is 0.
func NewHeader(size uint64) Header {
	h := Header{Magic: Magic, Version: Version}
	if size > HeaderSize {
		h.Capacity = uint32(min(size-HeaderSize, MaxCapacity))
	}
	return h
}

// Encode returns the header's bytes.
func (h Header) Encode() (b [HeaderSize]byte) {
	le := binary.LittleEndian
	le.PutUint32(b[offMagic:], h.Magic)
	le.PutUint32(b[offVersion:], h.Version)
	le.PutUint32(b[offCapacity:], h.Capacity)
	copy(b[offControl:], h.Control[:])
	le.PutUint64(b[offWritePtr:], h.WritePtr)
	le.PutUint64(b[offReadPtr:], h.ReadPtr)
	le.PutUint64(b[offDrops:], h.Drops)
	return b
}

// DecodeHeader decodes a header from its bytes; it does not check the fields.
func DecodeHeader(b [HeaderSize]byte) Header {
	le := binary.LittleEndian
	return Header{
		Magic:    le.Uint32(b[offMagic:]),
		Version:  le.Uint32(b[offVersion:]),
		Capacity: le.Uint32(b[offCapacity:]),
		Control:  [4]byte(b[offControl:]),
		WritePtr: le.Uint64(b[offWritePtr:]),
		ReadPtr:  le.Uint64(b[offReadPtr:]),
		Drops:    le.Uint64(b[offDrops:]),
	}
}

// Type is the type of a message's payload.
type Type uint32

// The nine types of the format: ktstr shm_ring.rs, MSG_TYPE_*.
const (
	Stimulus       Type = 0x5354494d // STIM: StimulusEvent
	ScenarioStart  Type = 0x53435354 // SCST: empty
	ScenarioEnd    Type = 0x5343454e // SCEN: empty
	Exit           Type = 0x45584954 // EXIT: the test's exit code, i32
	TestResult     Type = 0x54455354 // TEST: JSON
	SchedulerExit  Type = 0x53434458 // SCDX: the scheduler's exit code, i32
	Crash          Type = 0x43525348 // CRSH: UTF-8 text
	PayloadMetrics Type = 0x504d4554 // PMET: JSON
	RawOutput      Type = 0x5241574f // RAWO: JSON
)

// Types of our own, which the format leaves room for.
const (
	Stdout Type = 0x5354444f // STDO: bytes that the command wrote to its stdout
	Stderr Type = 0x53544445 // STDE: the same of its stderr

	SchedulerChange Type = 0x53585354 // SXST: SchedulerState
	SchedulerDump   Type = 0x53584450 // SXDP: DumpPiece
	SchedulerOutput Type = 0x53584f55 // SXOU: OutputPiece
)

// Types returns the types of the format, then our own.
func Types() []Type {
	return []Type{Stimulus, ScenarioStart, ScenarioEnd, Exit, TestResult, SchedulerExit, Crash, PayloadMetrics,
		RawOutput, Stdout, Stderr, SchedulerChange, SchedulerDump, SchedulerOutput}
}

// Known reports whether t is one of Types.
func (t Type) Known() bool {
	switch t {
	case Stimulus, ScenarioStart, ScenarioEnd, Exit, TestResult, SchedulerExit, Crash, PayloadMetrics,
		RawOutput, Stdout, Stderr, SchedulerChange, SchedulerDump, SchedulerOutput:
		return true
	}
	return false
}

// endsRun reports whether the host ends a run for a message of this type.
func (t Type) endsRun() bool { return t == Exit || t == SchedulerExit || t == Crash }

// String returns the four letters of a known type, and 0x%08x of any other.
func (t Type) String() string {
	if t.Known() {
		return string([]byte{byte(t >> 24), byte(t >> 16), byte(t >> 8), byte(t)})
	}
	return fmt.Sprintf("0x%08x", uint32(t))
}

// Message is one entry of the ring.
type Message struct {
	Type    Type
	CRCOK   bool   // the payload's CRC-32 is the one in its header
	Payload []byte // the host's copy; valid until the next message is read
}

type messageHeader struct {
	typ    Type
	length uint32 // bytes of payload
	crc    uint32
}

func decodeMessageHeader(b [MessageHeaderSize]byte) messageHeader {
	le := binary.LittleEndian
	return messageHeader{Type(le.Uint32(b[offType:])), le.Uint32(b[offLength:]), le.Uint32(b[offCRC:])}
}

func (m messageHeader) encode() (b [MessageHeaderSize]byte) {
	le := binary.LittleEndian
	le.PutUint32(b[offType:], uint32(m.typ))
	le.PutUint32(b[offLength:], m.length)
	le.PutUint32(b[offCRC:], m.crc)
	return b
}

// size is the message's length with its header, in bytes.
func (m messageHeader) size() uint64 { return MessageHeaderSize + uint64(m.length) }
