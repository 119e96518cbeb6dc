package qemu

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

// headLimit is how much of what QEMU says of itself is kept, in bytes.
const headLimit = 4 << 10

// head keeps the beginning of what is written to it.
type head struct {
	mu   sync.Mutex
	text []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, p[:min(len(p), headLimit-len(h.text))]...)
	return len(p), nil
}

// line is all that was kept, in one line.
func (h *head) line() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(h.text), "\ufffd")), " ")
}

// tripleFault is how QEMU's log of resets begins the one that a triple fault makes.
var tripleFault = []byte("Triple fault")

// logWatch looks for a triple fault in QEMU's log of resets, which a guest can make as long as it likes,
// and keeps nothing of it.
type logWatch struct {
	tripleFault bool
	rest        []byte // the end of what was written, where the words may begin
}

func (w *logWatch) Write(p []byte) (int, error) {
	text := append(w.rest, p...)
	w.tripleFault = w.tripleFault || bytes.Contains(text, tripleFault)
	w.rest = append(w.rest[:0], text[max(0, len(text)-len(tripleFault)+1):]...)
	return len(p), nil
}

// How often the doorbell's pipe is read: so many times at once, and then no more than once in so long. A guest
// that rings without end fills less than the pipe meanwhile, which would hold up QEMU: each ring is a system call
// of QEMU's own.
const (
	bellBurst = 16
	bellEvery = 10 * time.Millisecond
)

// bellWatch passes on each ring, a byte of the doorbell's pipe. It holds up its reader so that rings without end
// cost the host no more than a poll of as long.
type bellWatch struct {
	ring func(rings int)
	paid time.Time // when all reads so far are paid for, at one in bellEvery
}

func (w *bellWatch) Write(p []byte) (int, error) {
	w.ring(len(p))
	now := time.Now()
	if w.paid.Before(now) {
		w.paid = now
	}
	w.paid = w.paid.Add(bellEvery)
	time.Sleep(w.paid.Sub(now) - bellBurst*bellEvery)
	return len(p), nil
}
