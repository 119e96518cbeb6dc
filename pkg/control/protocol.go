// Package control lets other processes of the same user look into a run that is going on and act on it, through a
// socket of the run's. A Server answers for the run, a Client asks. The protocol is described in docs/control.md.
package control

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Version is the version of the protocol.
const Version = 1

// Bounds of what clients can take of a run.
const (
	MaxClients   = 64      // that are served at the same time
	MaxRequest   = 4 << 10 // bytes, the line's end included
	requestLimit = 5 * time.Second
	WriteLimit   = 5 * time.Second // for a client to take what is written at a time
)

// ErrorCode says what kind of error an answer has.
type ErrorCode string

// The kinds of errors.
const (
	CodeRequest ErrorCode = "request" // the request is wrong
	CodeVersion ErrorCode = "version" // the request is of another version of the protocol
	CodeDenied  ErrorCode = "denied"  // the client is another user's
	CodeBusy    ErrorCode = "busy"    // MaxClients are served already, or somebody is at what one client does at a time
	CodeOver    ErrorCode = "over"    // the run is over
	CodeFailed  ErrorCode = "failed"  // it could not be done
)

// Error is an error that a run has answered with.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Is makes errors.Is tell errors apart by their codes: those that have one as their sentinels.
func (e *Error) Is(target error) bool {
	return target == ErrBusy && e.Code == CodeBusy || target == ErrOver && e.Code == CodeOver
}

// Errors of a Client, in addition to those that a run answers with.
var (
	ErrBusy       = errors.New("the run serves as many clients as it can")
	ErrOver       = errors.New("the run is over")
	ErrNotRunning = errors.New("no run listens there")
	ErrProtocol   = errors.New("the answer is not of this protocol")
)

// head is what every request has.
type head struct {
	Version int    `json:"ktstr_vmm_control"`
	Verb    string `json:"verb"`
}

// line is one line of an answer. The first one has the version. The last one has End or Error.
type line struct {
	Version int      `json:"ktstr_vmm_control,omitempty"`
	Status  *Status  `json:"status,omitempty"`
	Message *Message `json:"message,omitempty"`
	Omitted uint64   `json:"omitted,omitempty"` // messages that a follower has missed
	Size    *uint64  `json:"size,omitempty"`    // of what comes in pieces
	At      *uint64  `json:"at,omitempty"`      // where in that Data begins
	Data    []byte   `json:"data,omitempty"`
	Text    string   `json:"text,omitempty"`
	CPU     *cpu     `json:"cpu,omitempty"`
	Opened  bool     `json:"opened,omitempty"` // a session
	End     *End     `json:"end,omitempty"`
	Error   *Error   `json:"error,omitempty"`
}

// End is the end of an answer.
type End struct {
	Next     uint64  `json:"next,omitempty"`      // of which message, or byte of the console, to ask from the next time
	ExitCode *int    `json:"exit_code,omitempty"` // of a session that has ended
	Result   *Result `json:"result,omitempty"`    // nil while the run goes on
}

// Result is how a run has ended.
type Result struct {
	Outcome  string `json:"outcome"`
	ExitCode int    `json:"exit_code"`
	Reason   string `json:"reason"`
}

// Status is what a run does.
type Status struct {
	ID           string            `json:"id"`
	Name         string            `json:"name"`
	Version      string            `json:"version"` // of the program
	PID          int               `json:"pid"`
	Kernel       string            `json:"kernel"`
	Arch         string            `json:"arch"`
	Accelerator  string            `json:"accelerator"`
	StartedAt    time.Time         `json:"started_at"`
	Elapsed      float64           `json:"elapsed_seconds"`
	Timeout      float64           `json:"timeout_seconds"`
	Phase        string            `json:"phase"`
	Messages     uint64            `json:"messages"`
	Bytes        uint64            `json:"bytes"`
	ByType       map[string]uint64 `json:"by_type"` // without those that there were none of
	Drops        uint64            `json:"drops"`
	CRCErrors    uint64            `json:"crc_errors"`
	Faults       uint64            `json:"faults"`
	Used         uint64            `json:"used_bytes"` // that waited in the ring at the last look
	Capacity     uint64            `json:"capacity_bytes"`
	LastStimulus *Stimulus         `json:"last_stimulus,omitempty"`
	Kept         int               `json:"kept"`    // messages that can be asked for
	Omitted      uint64            `json:"omitted"` // messages that there was no room to keep
	ConsoleBytes uint64            `json:"console_bytes"`
}

// Stimulus is a STIM and when it was read.
type Stimulus struct {
	At float64 `json:"at_seconds"`
	shm.StimulusEvent
}

// Message is a message of the guest's.
type Message struct {
	Seq     int     `json:"seq"` // its number among those that the run keeps, from 0; -1: the run does not keep it
	At      float64 `json:"at_seconds"`
	Type    string  `json:"type"`
	TypeID  uint32  `json:"type_id"`
	CRCOK   bool    `json:"crc_ok"`
	Size    int     `json:"size"`    // of the payload
	Payload Hex     `json:"payload"` // the first bytes of it, as far as they are kept
}

// Hex is bytes that are hex digits in JSON, as in the output of ktstr-vmm inspect.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

// TailOptions say which messages are asked for.
type TailOptions struct {
	From   uint64   `json:"from,omitempty"`   // the number of the first one
	Types  []string `json:"types,omitempty"`  // nil: all that are kept
	Follow bool     `json:"follow,omitempty"` // also those to come, to the run's end
}

func wrong(format string, args ...any) error {
	return &Error{CodeRequest, fmt.Sprintf(format, args...)}
}
