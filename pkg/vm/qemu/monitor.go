package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// How much of what QEMU says on its monitor is kept, in bytes: of a line, of which those with registers have some 80,
// and of a processor's lines, which have some 3000.
const (
	maxMonitorLine = 512
	maxProcessor   = 16 << 10
)

// monitor is our end of QEMU's monitor for people, on which it is asked for registers: QEMU, System Emulation, "QEMU
// Monitor". It does what is asked in its main loop, one command after the other. QMP does not: a QEMU that is to end
// while it has a command to do on QMP may wait for that for ever (7.2, monitor_cleanup).
type monitor struct {
	conn *os.File
	line []byte

	asking chan struct{} // has a value from a question to its answer's end, be it waited for or not
	mu     sync.Mutex
	asked  *question // nil: there is none
	number int       // of questions
}

// question is one to all processors for their registers.
type question struct {
	end  string            // the line behind the answer
	text []strings.Builder // of each processor
	at   int               // whose lines come; -1: nobody's
	done chan struct{}
}

// newMonitor makes the monitor's socket, and returns QEMU's end, too.
func newMonitor() (*monitor, *os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "monitor"), os.NewFile(uintptr(ends[1]), "monitor")
	return &monitor{conn: ours, asking: make(chan struct{}, 1)}, theirs, nil
}

// monitorArgs are QEMU's for a monitor whose socket is its fd 8.
var monitorArgs = []string{"-chardev", "socket,id=monitor,fd=8", "-mon", "chardev=monitor,mode=readline"}

// Write takes what QEMU says.
func (q *monitor) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		rest = after
		q.line = append(q.line, line[:min(len(line), maxMonitorLine-len(q.line))]...)
		if whole {
			q.take(strings.TrimSuffix(string(q.line), "\r"))
			q.line = q.line[:0]
		}
	}
	return len(p), nil
}

// take takes a line. Between those that are answers there are some that repeat what QEMU was told.
func (q *monitor) take(line string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.asked
	if a == nil {
		return
	}
	if line == a.end {
		close(a.done)
		q.asked = nil
		<-q.asking
		return
	}
	var cpu int
	if n, _ := fmt.Sscanf(line, "CPU#%d", &cpu); n == 1 {
		if a.at = cpu; cpu < 0 || cpu >= len(a.text) {
			a.at = -1
		}
		return
	}
	if a.at >= 0 && a.text[a.at].Len() < maxProcessor {
		a.text[a.at].WriteString(line + "\n")
	}
}

// ask asks for the registers of so many processors and returns what QEMU says of each. QEMU stops all of them for that:
// the registers of one that runs are in those of the host, mostly. That the guest goes on is asked for in the same
// breath, so that it does whatever happens here meanwhile.
func (q *monitor) ask(ctx context.Context, cpus int, gone <-chan struct{}) ([]string, error) {
	select {
	case q.asking <- struct{}{}:
	case <-gone:
		return nil, vm.ErrNotRunning
	case <-ctx.Done():
		return nil, fmt.Errorf("QEMU has yet to answer who asked before: %w", context.Cause(ctx))
	}
	q.mu.Lock()
	q.number++
	end := fmt.Sprintf("end-%d", q.number) // which is no command
	a := &question{fmt.Sprintf("unknown command: '%s'", end), make([]strings.Builder, cpus), -1, make(chan struct{})}
	q.asked = a
	q.mu.Unlock()
	// There is room in the socket, for QEMU has read all that was asked before.
	_ = q.conn.SetWriteDeadline(time.Now().Add(drainLimit))
	if _, err := q.conn.WriteString("stop\ninfo registers -a\ncont\n" + end + "\n"); err != nil {
		if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EPIPE) {
			return nil, vm.ErrNotRunning
		}
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	select {
	case <-a.done:
	case <-gone:
		return nil, vm.ErrNotRunning
	case <-ctx.Done():
		return nil, fmt.Errorf("QEMU did not answer: %w", context.Cause(ctx))
	}
	texts := make([]string, cpus)
	for i := range texts {
		texts[i] = a.text[i].String()
	}
	return texts, nil
}
