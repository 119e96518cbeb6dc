package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// acceptPause is how long accept waits where there is no file descriptor or no memory for another
// connection.
const acceptPause = 10 * time.Millisecond

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
	flushed  chan struct{} // closed when all lines that were there at flush's call were read
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[*os.File]struct{}
}

// openDoors opens both in a directory of their own.
func openDoors(
	dir string, limit uint64, send func(context.Context, shm.Type, []byte) error, complain func(error), guard func(),
) (*doors, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	d := &doors{
		limit: limit, send: send, complain: complain, guard: guard,
		flushed: make(chan struct{}), conns: map[*os.File]struct{}{},
	}
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
	return []string{agentproto.SocketEnv + "=" + d.listener.Name(), agentproto.FileEnv + "=" + d.file.Name()}
}

// flush returns when what was written to the pipe before is in the ring, and ends its reading. What
// came by the socket was answered when it was.
func (d *doors) flush() {
	// The reader is told by a deadline, which nobody else can write into the pipe.
	if err := d.file.SetReadDeadline(time.Now()); err != nil {
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

// accept serves connections until the doors are closed.
func (d *doors) accept() {
	defer d.guard()
	for lacking := false; ; {
		c, err := accept(d.listener)
		if err != nil {
			if d.ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
				return
			}
			// accept(2) names many errors, and none of them is the listener's end: a connection that
			// is gone again, or a lack that passes.
			if !lacking {
				d.complain(fmt.Errorf("%s: taking a connection: %w; trying again", d.listener.Name(), err))
			}
			lacking = true
			select {
			case <-d.ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		lacking = false
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

// serve answers one connection's requests.
func (d *doors) serve(c *os.File) {
	for {
		t, payload, err := agentproto.ReadRequest(c, d.limit)
		if err == nil {
			err = d.accepted(t, payload)
		} else if !errors.Is(err, agentproto.ErrTooLarge) {
			return
		}
		if agentproto.WriteReply(c, err) != nil {
			return
		}
	}
}

// accepted sends a request's message, if it is one that the host can do something with.
func (d *doors) accepted(t shm.Type, payload []byte) (err error) {
	switch {
	case !t.Known() || isAgents(t):
		return fmt.Errorf("%v is no type that a test may send", t)
	case t == shm.Exit || t == shm.SchedulerExit:
		_, err = shm.DecodeCode(payload)
	case t == shm.Stimulus:
		_, err = shm.DecodeStimulus(payload)
	}
	if err != nil {
		return err
	}
	return d.send(d.ctx, t, payload)
}

// isAgents reports whether messages of a type are the agent's alone: what the host does with them has its word for it.
func isAgents(t shm.Type) bool {
	switch t {
	case shm.Stdout, shm.Stderr, shm.SchedulerChange, shm.SchedulerDump, shm.SchedulerOutput:
		return true
	}
	return false
}

// readLines reads the pipe until flush is called, and then what is in it. Whoever writes to it never
// waits long: what is no message is passed over.
func (d *doors) readLines() {
	defer d.guard()
	defer close(d.flushed)
	in := &lines{line: d.line, tooLong: func([]byte) {
		d.complain(fmt.Errorf("a message of more than %d bytes in a line: not sent", maxLine))
	}}
	_, err := io.Copy(in, struct{ io.Reader }{d.file})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = d.readRest(in)
	}
	if err != nil && d.ctx.Err() == nil {
		d.complain(fmt.Errorf("reading messages: %w; no more are read", err))
	}
	in.end()
}

// readRest reads what is in the pipe now and waits for no more: somebody may hold it open, and write
// to it without end.
func (d *doors) readRest(to io.Writer) error {
	pipe, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = pipe.Control(func(fd uintptr) {
		var left int
		if left, failure = unix.IoctlGetInt(int(fd), unix.TIOCINQ); failure != nil {
			return
		}
		for buf := make([]byte, 32<<10); left > 0; {
			var n int
			n, failure = unix.Read(int(fd), buf[:min(left, len(buf))])
			if failure == unix.EINTR {
				continue
			}
			if n <= 0 { // somebody else has read it
				if failure == unix.EAGAIN {
					failure = nil
				}
				return
			}
			left -= n
			_, _ = to.Write(buf[:n])
		}
	})
	return errors.Join(err, failure)
}

// line handles a line of the pipe.
func (d *doors) line(line []byte) {
	if err := d.message(line); err != nil {
		d.complain(fmt.Errorf("message %.100q: %w", line, err))
	}
}

// message sends a line of the pipe: a type, a blank, and the payload as text.
func (d *doors) message(line []byte) error {
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
