package shm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// ErrPayload means that a payload is not one that its type allows.
var ErrPayload = errors.New("bad payload")

// StimulusSize is the payload of a Stimulus in bytes; what follows is ignored.
const StimulusSize = 24

// StimulusEvent is the payload of Stimulus: what a step of
// the scenario did. ktstr shm_ring.rs, StimulusPayload.
type StimulusEvent struct {
	ElapsedMS       uint32 `json:"elapsed_ms"` // since the scenario's start
	StepIndex       uint16 `json:"step_index"`
	OpCount         uint16 `json:"op_count"`
	OpKinds         uint32 `json:"op_kinds"` // bit mask
	CgroupCount     uint16 `json:"cgroup_count"`
	WorkerCount     uint16 `json:"worker_count"`
	TotalIterations uint64 `json:"total_iterations"`
}

// DecodeStimulus decodes a Stimulus payload. It fails with ErrPayload if it is short.
func DecodeStimulus(p []byte) (StimulusEvent, error) {
	if len(p) < StimulusSize {
		return StimulusEvent{}, fmt.Errorf("%w: STIM of %d bytes, it takes %d", ErrPayload, len(p), StimulusSize)
	}
	le := binary.LittleEndian
	return StimulusEvent{
		ElapsedMS:       le.Uint32(p[0:]),
		StepIndex:       le.Uint16(p[4:]),
		OpCount:         le.Uint16(p[6:]),
		OpKinds:         le.Uint32(p[8:]),
		CgroupCount:     le.Uint16(p[12:]),
		WorkerCount:     le.Uint16(p[14:]),
		TotalIterations: le.Uint64(p[16:]),
	}, nil
}

// Encode returns the payload's bytes.
func (s StimulusEvent) Encode() (p [StimulusSize]byte) {
	le := binary.LittleEndian
	le.PutUint32(p[0:], s.ElapsedMS)
	le.PutUint16(p[4:], s.StepIndex)
	le.PutUint16(p[6:], s.OpCount)
	le.PutUint32(p[8:], s.OpKinds)
	le.PutUint16(p[12:], s.CgroupCount)
	le.PutUint16(p[14:], s.WorkerCount)
	le.PutUint64(p[16:], s.TotalIterations)
	return p
}

// DecodeCode decodes the payload of Exit or SchedulerExit,
// an i32. It fails with ErrPayload if it is not 4 bytes.
func DecodeCode(p []byte) (int32, error) {
	if len(p) != 4 {
		return 0, fmt.Errorf("%w: exit code of %d bytes, it takes 4", ErrPayload, len(p))
	}
	return int32(binary.LittleEndian.Uint32(p)), nil
}

// EncodeCode returns the payload of Exit or SchedulerExit.
func EncodeCode(code int32) (p [4]byte) {
	binary.LittleEndian.PutUint32(p[:], uint32(code))
	return p
}

// CrashText returns the payload of Crash as text; what is not UTF-8 becomes U+FFFD.
func CrashText(p []byte) string { return strings.ToValidUTF8(string(p), "\ufffd") }
