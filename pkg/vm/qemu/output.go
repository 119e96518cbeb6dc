package qemu

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"sync"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
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

// listener hears from a QEMU why its guest ends.
type listener interface {
	io.Writer // of what QEMU says, which a guest can make as long as it likes
	// ready is closed when QEMU will say why a guest ends that begins now.
	ready() <-chan struct{}
	// ended says why a child ended that said nothing of a failure: the guest's own end. It returns nil where no
	// guest can have done it.
	ended(status int) error
}

// tripleFault is how QEMU's log of resets begins the one that a triple fault makes.
var tripleFault = []byte("Triple fault")

// always is ready for a listener that is from the start.
var always = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// resetLog looks for a triple fault in QEMU's log of resets and keeps nothing of it.
type resetLog struct {
	tripleFault bool
	rest        []byte // the end of what was written, where the words may begin
}

func (w *resetLog) ready() <-chan struct{} { return always }

func (w *resetLog) Write(p []byte) (int, error) {
	text := append(w.rest, p...)
	w.tripleFault = w.tripleFault || bytes.Contains(text, tripleFault)
	w.rest = append(w.rest[:0], text[max(0, len(text)-len(tripleFault)+1):]...)
	return len(p), nil
}

// eventLimit is how long a line of QEMU's monitor may be to be understood, in bytes. The longest that says
// something here has a few hundred.
const eventLimit = 4 << 10

// shutdownEvents looks for the reason of the shutdown in what QEMU's monitor says: QEMU, QMP reference manual,
// SHUTDOWN.
type shutdownEvents struct {
	negotiated chan struct{}
	reason     string
	line       []byte
}

func newShutdownEvents() *shutdownEvents { return &shutdownEvents{negotiated: make(chan struct{})} }

func (e *shutdownEvents) ready() <-chan struct{} { return e.negotiated }

func (e *shutdownEvents) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		rest = after
		e.line = append(e.line, line[:min(len(line), eventLimit-len(e.line))]...)
		if whole {
			e.take(e.line)
			e.line = e.line[:0]
		}
	}
	return len(p), nil
}

// take looks at a line: the answer to the one command that QEMU gets, after which it tells of events, or an event.
func (e *shutdownEvents) take(line []byte) {
	var said struct {
		Return *struct{}
		Event  string
		Data   struct{ Reason string }
	}
	if json.Unmarshal(line, &said) != nil {
		return
	}
	if said.Return != nil {
		select {
		case <-e.negotiated:
		default:
			close(e.negotiated)
		}
	}
	if said.Event == "SHUTDOWN" {
		e.reason = said.Data.Reason
	}
}

func (e *shutdownEvents) ended(status int) error {
	switch {
	case status != 0:
	case e.reason == "guest-shutdown":
		return vm.ErrPowerOff
	case e.reason == "guest-reset":
		return vm.ErrReset
	}
	return nil
}
