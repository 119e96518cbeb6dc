package shm

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
)

// SchedulerPhase says where a scheduler under test is between its start and its end.
type SchedulerPhase uint8

// The phases. Those from SchedulerLost on are ends.
const (
	SchedulerLoading   SchedulerPhase = iota + 1 // its process was started
	SchedulerEnabling                            // the kernel is making it the scheduler
	SchedulerEnabled                             // it is the scheduler
	SchedulerDisabling                           // the kernel is taking that from it
	SchedulerDisabled                            // the kernel's own schedulers are in charge again
	SchedulerLost                                // it ended, or is the scheduler no more, before it was asked to go
	SchedulerRefused                             // it did not become the scheduler
	SchedulerReplaced                            // another one is the scheduler, or it is for a second time
	SchedulerLeft                                // it was asked to go, and has gone
)

var schedulerPhases = [...]string{
	SchedulerLoading: "loading", SchedulerEnabling: "enabling", SchedulerEnabled: "enabled",
	SchedulerDisabling: "disabling", SchedulerDisabled: "disabled", SchedulerLost: "lost", SchedulerRefused: "refused",
	SchedulerReplaced: "replaced", SchedulerLeft: "left",
}

// String returns the phase in one word, or phase(N) if it is none of the constants.
func (p SchedulerPhase) String() string {
	if int(p) < len(schedulerPhases) && p != 0 {
		return schedulerPhases[p]
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// Ends reports whether the scheduler under test is gone, before it was asked to go.
func (p SchedulerPhase) Ends() bool {
	return p == SchedulerLost || p == SchedulerRefused || p == SchedulerReplaced
}

// Bounds of the strings in a SchedulerState, in bytes. Encode cuts what is longer.
const (
	MaxOpsName         = 128 // SCX_OPS_NAME_LEN in Linux's kernel/sched/ext.c
	MaxSchedulerReason = 1024
)

// SchedulerState is the payload of SchedulerChange: what a guest's kernel says of sched_ext at one moment, by the files
// in /sys/kernel/sched_ext and by its log (Linux, Documentation/scheduler/sched-ext.rst).
//
// It has a u64 each for Time, Noticed (in nanoseconds), EnableSeq, HotplugSeq and Rejected, an i32 for PID, a u8 each
// for Phase and SwitchAll (0 or 1), a u16 each for the lengths of Ops and Reason, and these two.
type SchedulerState struct {
	Time    time.Duration // when the agent knew, since the guest's boot
	Noticed time.Duration // when the kernel's log said so, since the guest's boot; 0: it does not say it
	Phase   SchedulerPhase

	EnableSeq  uint64 // how many schedulers have been enabled since boot
	HotplugSeq uint64 // how many CPUs went on or off line since boot
	Rejected   uint64 // tasks that the scheduler refused; they stay with the kernel's own
	SwitchAll  bool   // all tasks are the scheduler's, not only those of the policy SCHED_EXT
	PID        int32  // of the scheduler's process

	Ops    string // the name of the scheduler in charge; "": none
	Reason string // who or what brought this about; "": there is nothing to add
}

// schedulerStateSize is the payload of a SchedulerChange without its strings, in bytes.
const schedulerStateSize = 50

// Encode returns the payload's bytes. Strings that are too long are cut.
func (s SchedulerState) Encode() []byte {
	ops, reason := cut(s.Ops, MaxOpsName), cut(s.Reason, MaxSchedulerReason)
	le := binary.LittleEndian
	p := make([]byte, 0, schedulerStateSize+len(ops)+len(reason))
	for _, v := range []uint64{uint64(s.Time), uint64(s.Noticed), s.EnableSeq, s.HotplugSeq, s.Rejected} {
		p = le.AppendUint64(p, v)
	}
	p = le.AppendUint32(p, uint32(s.PID))
	all := byte(0)
	if s.SwitchAll {
		all = 1
	}
	p = append(p, byte(s.Phase), all)
	p = le.AppendUint16(p, uint16(len(ops)))
	p = le.AppendUint16(p, uint16(len(reason)))
	return append(append(p, ops...), reason...)
}

// DecodeSchedulerState decodes the payload of a SchedulerChange. It fails with ErrPayload if the payload is short, a
// time is out of range, the phase is none of the constants, SwitchAll is neither 0 nor 1, or a string is longer than
// its bound. What follows the strings is ignored; what is not UTF-8 in them becomes U+FFFD.
func DecodeSchedulerState(p []byte) (SchedulerState, error) {
	bad := func(format string, args ...any) (SchedulerState, error) {
		return SchedulerState{}, fmt.Errorf("%w: SXST "+format, append([]any{ErrPayload}, args...)...)
	}
	if len(p) < schedulerStateSize {
		return bad("of %d bytes, it takes %d", len(p), schedulerStateSize)
	}
	le := binary.LittleEndian
	at, noticed := le.Uint64(p), le.Uint64(p[8:])
	phase, all := SchedulerPhase(p[44]), p[45]
	ops, reason := int(le.Uint16(p[46:])), int(le.Uint16(p[48:]))
	text := p[schedulerStateSize:]
	switch {
	case at > math.MaxInt64 || noticed > math.MaxInt64:
		return bad("at %d ns and %d ns, at most %d", at, noticed, int64(math.MaxInt64))
	case phase == 0 || int(phase) >= len(schedulerPhases):
		return bad("with the phase %d, the last is %d", uint8(phase), len(schedulerPhases)-1)
	case all > 1:
		return bad("with switch_all %d, it is 0 or 1", all)
	case ops > MaxOpsName || reason > MaxSchedulerReason:
		return bad("with strings of %d and %d bytes, at most %d and %d", ops, reason, MaxOpsName, MaxSchedulerReason)
	case ops+reason > len(text):
		return bad("with strings of %d and %d bytes, %d are there", ops, reason, len(text))
	}
	return SchedulerState{
		Time: time.Duration(at), Noticed: time.Duration(noticed), Phase: phase,
		EnableSeq: le.Uint64(p[16:]), HotplugSeq: le.Uint64(p[24:]), Rejected: le.Uint64(p[32:]),
		SwitchAll: all == 1, PID: int32(le.Uint32(p[40:])),
		Ops:    strings.ToValidUTF8(string(text[:ops]), "\ufffd"),
		Reason: strings.ToValidUTF8(string(text[ops:ops+reason]), "\ufffd"),
	}, nil
}

// DumpPiece is the payload of SchedulerDump: some lines of a dump that sched_ext made of its state. It has a u32 for
// the dump's number, a u32 for Omitted, and the text.
type DumpPiece struct {
	Number  uint32 // of the dump, from 1
	Omitted uint32 // bytes of the dump before this piece that nobody has, as far as they can be counted
	Text    []byte // whole lines
}

const dumpPieceSize = 8 // bytes before the text

// MaxDumpPiece bounds a DumpPiece's text, in bytes.
const MaxDumpPiece = 32 << 10

// Encode returns the payload's bytes. A text that is too long is cut.
func (d DumpPiece) Encode() []byte {
	text := d.Text[:min(len(d.Text), MaxDumpPiece)]
	p := make([]byte, 0, dumpPieceSize+len(text))
	p = binary.LittleEndian.AppendUint32(p, d.Number)
	p = binary.LittleEndian.AppendUint32(p, d.Omitted)
	return append(p, text...)
}

// DecodeDumpPiece decodes the payload of a SchedulerDump. Its text is p's. It fails with ErrPayload if the payload is
// short, its text is longer than MaxDumpPiece, or the dump's number is 0.
func DecodeDumpPiece(p []byte) (DumpPiece, error) {
	if len(p) < dumpPieceSize || len(p) > dumpPieceSize+MaxDumpPiece {
		return DumpPiece{}, fmt.Errorf("%w: SXDP of %d bytes, it takes %d to %d", ErrPayload, len(p), dumpPieceSize,
			dumpPieceSize+MaxDumpPiece)
	}
	le := binary.LittleEndian
	d := DumpPiece{Number: le.Uint32(p), Omitted: le.Uint32(p[4:]), Text: p[dumpPieceSize:]}
	if d.Number == 0 {
		return DumpPiece{}, fmt.Errorf("%w: SXDP of dump 0, the first is 1", ErrPayload)
	}
	return d, nil
}

// OutputStream is one of a process's two outputs.
type OutputStream uint8

// The streams, by their descriptors' numbers.
const (
	OutputStdout OutputStream = 1
	OutputStderr OutputStream = 2
)

// OutputPiece is the payload of SchedulerOutput: bytes that the scheduler under test wrote. It has a u8 for the
// stream, and the bytes.
type OutputPiece struct {
	Stream OutputStream
	Text   []byte
}

// Encode returns the payload's bytes.
func (o OutputPiece) Encode() []byte { return append([]byte{byte(o.Stream)}, o.Text...) }

// DecodeOutputPiece decodes the payload of a SchedulerOutput. Its text is p's. It fails with ErrPayload if the payload
// is empty or names no stream.
func DecodeOutputPiece(p []byte) (OutputPiece, error) {
	if len(p) == 0 {
		return OutputPiece{}, fmt.Errorf("%w: SXOU of 0 bytes, it takes 1", ErrPayload)
	}
	o := OutputPiece{Stream: OutputStream(p[0]), Text: p[1:]}
	if o.Stream != OutputStdout && o.Stream != OutputStderr {
		return OutputPiece{}, fmt.Errorf("%w: SXOU of stream %d, it is 1 or 2", ErrPayload, p[0])
	}
	return o, nil
}

// cut returns the beginning of s, of at most limit bytes, without a part of a character at its end.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "")
}
