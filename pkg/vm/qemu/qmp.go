package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// lineLimit is how long a line of QEMU's monitor may be to be understood, in bytes. Those with a processor's registers
// have some 3000, and of those that begin without having been asked for, the longest has a few hundred.
const lineLimit = 16 << 10

// monitor is our end of QEMU's monitor: QEMU, QMP reference manual. It hears why a guest ends, and asks for registers.
type monitor struct {
	conn       *os.File
	negotiated chan struct{}
	reason     string // of the last SHUTDOWN
	line       []byte

	asking chan struct{} // has a value from a question to its last answer, be it waited for or not
	mu     sync.Mutex
	asked  *question // nil: there is none
}

// question is one to all processors for their registers.
type question struct {
	answers []answer // of each processor
	done    chan struct{}
}

// answer is QEMU's to one command: a text, or an error.
type answer struct {
	Return string
	Error  struct{ Desc string }
}

// newMonitor makes the monitor's socket, which has its first command in it already: events come after that. It returns
// QEMU's end, too.
func newMonitor() (*monitor, *os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "QMP"), os.NewFile(uintptr(ends[1]), "QMP")
	if _, err := ours.WriteString(`{"execute": "qmp_capabilities"}` + "\n"); err != nil {
		closeAll([]*os.File{ours, theirs})
		return nil, nil, err
	}
	return &monitor{conn: ours, negotiated: make(chan struct{}), asking: make(chan struct{}, 1)}, theirs, nil
}

// Write takes what QEMU says.
func (q *monitor) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		rest = after
		q.line = append(q.line, line[:min(len(line), lineLimit-len(q.line))]...)
		if whole {
			q.take(q.line)
			q.line = q.line[:0]
		}
	}
	return len(p), nil
}

// take looks at a line: an answer or an event.
func (q *monitor) take(line []byte) {
	var said struct {
		Return json.RawMessage
		ID     *int
		Event  string
		Data   struct{ Reason string }
	}
	if json.Unmarshal(line, &said) != nil {
		return
	}
	switch {
	case said.ID != nil:
		q.answered(*said.ID, line)
	case said.Return != nil: // that of the first command, after which QEMU tells of events
		select {
		case <-q.negotiated:
		default:
			close(q.negotiated)
		}
	case said.Event == "SHUTDOWN":
		q.reason = said.Data.Reason
	}
}

// answered takes the answer for a processor, or the one behind the last of them.
func (q *monitor) answered(id int, line []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.asked == nil || id < 0 || id > len(q.asked.answers):
	case id < len(q.asked.answers):
		if json.Unmarshal(line, &q.asked.answers[id]) != nil {
			q.asked.answers[id] = answer{}
		}
	default:
		close(q.asked.done)
		q.asked = nil
		<-q.asking
	}
}

func (q *monitor) ready() <-chan struct{} { return q.negotiated }

func (q *monitor) ended(status int) error {
	switch {
	case status != 0:
	case q.reason == "guest-shutdown":
		return vm.ErrPowerOff
	case q.reason == "guest-reset":
		return vm.ErrReset
	}
	return nil
}

// ask asks for the registers of so many processors and returns QEMU's answers. QEMU stops all of them for that: the
// registers of one that runs are in those of the host, mostly. That the guest goes on is asked for in the same breath,
// so that it does whatever happens here meanwhile.
func (q *monitor) ask(ctx context.Context, cpus int, gone <-chan struct{}) ([]answer, error) {
	select {
	case q.asking <- struct{}{}:
	case <-gone:
		return nil, vm.ErrNotRunning
	case <-ctx.Done():
		return nil, fmt.Errorf("QEMU has yet to answer who asked before: %w", context.Cause(ctx))
	}
	asked := &question{make([]answer, cpus), make(chan struct{})}
	q.mu.Lock()
	q.asked = asked
	q.mu.Unlock()
	text := []byte(`{"execute": "stop"}` + "\n")
	for i := range cpus {
		text = fmt.Appendf(text, `{"execute": "human-monitor-command", "id": %d, `+
			`"arguments": {"command-line": "info registers", "cpu-index": %d}}`+"\n", i, i)
	}
	text = fmt.Appendf(text, `{"execute": "cont", "id": %d}`+"\n", cpus)
	// There is room in the socket, for QEMU has read all that was asked before.
	_ = q.conn.SetWriteDeadline(time.Now().Add(drainLimit))
	if _, err := q.conn.Write(text); err != nil {
		if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EPIPE) {
			return nil, vm.ErrNotRunning
		}
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	select {
	case <-asked.done:
		return asked.answers, nil
	case <-gone:
		return nil, vm.ErrNotRunning
	case <-ctx.Done():
		return nil, fmt.Errorf("QEMU did not answer: %w", context.Cause(ctx))
	}
}
