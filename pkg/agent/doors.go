package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/door"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// maxLine bounds a line of the message file, in bytes.
const maxLine = 256 << 10

// endOfFile, as a line of the message file, is the agent's own: what came before it is handled.
const endOfFile = "\x00end"

// doors are where the guest's processes put messages of their own: a socket, for pkg/ktstr, and a
// named pipe that takes a message a line.
type doors struct {
	limit    uint64 // bytes of the largest payload
	send     func(context.Context, shm.Type, []byte) error
	complain func(error)
	guard    func() // deferred by every goroutine

	ctx      context.Context
	cancel   context.CancelFunc
	listener *os.File
	file     *os.File
	flushed  chan struct{} // closed when the line endOfFile was read
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[*os.File]struct{}
}

// openDoors opens both in a directory of their own.
func openDoors(dir string, limit uint64, send func(context.Context, shm.Type, []byte) error, complain func(error), guard func()) (*doors, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	d := &doors{limit: limit, send: send, complain: complain, guard: guard, flushed: make(chan struct{}), conns: map[*os.File]struct{}{}}
	pipe := filepath.Join(dir, "messages")
	if err := unix.Mkfifo(pipe, 0o666); err != nil {
		return nil, fmt.Errorf("%s: %w", pipe, err)
	}
	var err error
	// For reading and writing: it has no end as long as the agent runs, and a writer never waits
	// for a reader to come.
	if d.file, err = os.OpenFile(pipe, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if d.listener, err = listen(filepath.Join(dir, "socket")); err != nil {
		return nil, errors.Join(err, d.file.Close())
	}
	for _, name := range []string{"messages", "socket"} { // whatever the umask and the user
		if err := os.Chmod(filepath.Join(dir, name), 0o666); err != nil {
			return nil, errors.Join(err, d.file.Close(), d.listener.Close())
		}
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.running.Go(d.readLines)
	d.running.Go(d.accept)
	return d, nil
}

// env tells the command where they are.
func (d *doors) env() []string {
	return []string{door.SocketEnv + "=" + d.listener.Name(), door.FileEnv + "=" + d.file.Name()}
}

// flush returns when what was written to the pipe before is in the ring. What came by the socket
// was answered when it was.
func (d *doors) flush() {
	if _, err := io.WriteString(d.file, "\n"+endOfFile+"\n"); err != nil {
		d.complain(err)
		return
	}
	<-d.flushed
}

// close closes both and waits for their goroutines.
func (d *doors) close() {
	d.cancel()
	d.listener.Close()
	d.file.Close()
	d.mu.Lock()
	for c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.running.Wait()
}

func (d *doors) accept() {
	defer d.guard()
	for {
		c, err := accept(d.listener)
		if err != nil {
			return
		}
		d.mu.Lock()
		d.conns[c] = struct{}{}
		d.mu.Unlock()
		if d.ctx.Err() != nil {
			c.Close()
		}
		d.running.Go(func() {
			defer d.guard()
			d.serve(c)
			d.mu.Lock()
			delete(d.conns, c)
			d.mu.Unlock()
			c.Close()
		})
	}
}

// serve answers one connection's requests. One that is too large ends it: what follows can't be
// told apart any more.
func (d *doors) serve(c *os.File) {
	for {
		t, payload, err := door.ReadRequest(c, d.limit)
		switch {
		case err == nil:
			err = d.accepted(t, payload)
			if door.WriteReply(c, err) != nil {
				return
			}
		case errors.Is(err, door.ErrTooLarge):
			_ = door.WriteReply(c, err)
			return
		default:
			return
		}
	}
}

func (d *doors) accepted(t shm.Type, payload []byte) error {
	if !t.Known() || t == shm.Stdout || t == shm.Stderr {
		return fmt.Errorf("%v is no type that a test may send", t)
	}
	return d.send(d.ctx, t, payload)
}

// readLines reads the pipe up to endOfFile. Whoever writes to it never waits long: what is no
// message is passed over.
func (d *doors) readLines() {
	defer d.guard()
	defer close(d.flushed)
	in := bufio.NewReaderSize(d.file, maxLine)
	for {
		line, long, err := in.ReadLine()
		for more := long; more && err == nil; {
			_, more, err = in.ReadLine()
		}
		switch {
		case err != nil:
			if d.ctx.Err() == nil {
				d.complain(fmt.Errorf("reading messages: %w; no more are read", err))
			}
			return
		case long:
			d.complain(fmt.Errorf("a message of more than %d bytes in a line: not sent", maxLine))
		case string(line) == endOfFile:
			return
		case len(bytes.TrimSpace(line)) > 0:
			if err := d.line(line); err != nil {
				d.complain(fmt.Errorf("message %.100q: %w", line, err))
			}
		}
	}
}

// line sends a line of the pipe: a type, a blank, and the payload as text.
func (d *doors) line(line []byte) error {
	name, payload, _ := bytes.Cut(line, []byte(" "))
	switch string(name) {
	case shm.TestResult.String():
		return d.send(d.ctx, shm.TestResult, payload)
	case shm.PayloadMetrics.String():
		return d.send(d.ctx, shm.PayloadMetrics, payload)
	case shm.RawOutput.String():
		return d.send(d.ctx, shm.RawOutput, payload)
	case shm.Stimulus.String():
		s, err := parseStimulus(string(payload))
		if err != nil {
			return fmt.Errorf("STIM takes a JSON object as the report has it: %w", err)
		}
		p := s.Encode()
		return d.send(d.ctx, shm.Stimulus, p[:])
	}
	return fmt.Errorf("%q is none of TEST, PMET, RAWO, STIM", name)
}
