// Package agentproto defines what the agent in a guest receives, and its answers.
//
// A Job comes from the host: pkg/linux writes it into the guest, and pkg/agent reads it there. Messages come from the
// guest's processes, through pkg/ktstr, on a socket: a request is two little-endian u32, the message's type and its
// length in bytes, and the payload. The answer is a u32, and that many bytes of text that say what went wrong: none if
// the message is in the ring.
package agentproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// What the agent adds to the command's environment.
const (
	SocketEnv = "KTSTR_SOCKET"   // path of the socket
	FileEnv   = "KTSTR_MESSAGES" // path of the file that takes messages as lines
)

// maxReply bounds an answer's text, in bytes.
const maxReply = 4 << 10

// ErrTooLarge means that a request has more bytes than its receiver accepts.
var ErrTooLarge = errors.New("message is too large")

// WriteRequest sends a message. It fails with ErrTooLarge if the length does not fit a request.
func WriteRequest(w io.Writer, t shm.Type, payload []byte) error {
	if uint64(len(payload)) > math.MaxUint32 {
		return fmt.Errorf("%w: %v of %d bytes, at most %d", ErrTooLarge, t, len(payload), uint32(math.MaxUint32))
	}
	b := make([]byte, 8, 8+len(payload))
	binary.LittleEndian.PutUint32(b, uint32(t))
	binary.LittleEndian.PutUint32(b[4:], uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

// ReadRequest receives a message of at most limit bytes. It returns io.EOF if there are no more. It skips a larger
// message and returns ErrTooLarge; then the next one can be read.
func ReadRequest(r io.Reader, limit uint64) (shm.Type, []byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	t, n := shm.Type(binary.LittleEndian.Uint32(head[:])), binary.LittleEndian.Uint32(head[4:])
	if uint64(n) > limit {
		if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
			return t, nil, fmt.Errorf("%v of %d bytes: %w", t, n, err)
		}
		return t, nil, fmt.Errorf("%w: %v of %d bytes, at most %d", ErrTooLarge, t, n, limit)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return t, nil, fmt.Errorf("%v of %d bytes: %w", t, n, err)
	}
	return t, payload, nil
}

// WriteReply answers a request; nil says that the message is in the ring.
func WriteReply(w io.Writer, failure error) error {
	text := ""
	if failure != nil {
		text = failure.Error()
		text = text[:min(len(text), maxReply)]
	}
	_, err := w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

// ReadReply receives an answer: nil, the agent's error, or why there is no answer.
func ReadReply(r io.Reader) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("no answer from the agent: %w", err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n == 0 {
		return nil
	}
	if n > maxReply {
		return fmt.Errorf("no answer from the agent: it has %d bytes, at most %d", n, maxReply)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return fmt.Errorf("no answer from the agent: %w", err)
	}
	return errors.New(string(text))
}
