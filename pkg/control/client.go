package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Bounds of what a client takes of an answer: who answers may be no run.
const (
	maxLine      = 4 << 20 // bytes, also of all that is kept of an answer
	maxRing      = shm.HeaderSize + shm.MaxCapacity
	silenceLimit = 10 * time.Second // between what comes of an answer that does not follow the run
)

// Client asks the run that has a socket. Each of its methods is a connection of its own. It fails with an *Error of the
// run's, ErrNotRunning if nobody listens at the socket, ErrOver if the run ended meanwhile, ErrProtocol if it is no run
// that answers, context.DeadlineExceeded if it falls silent, and ctx's error when ctx ends.
type Client struct{ Path string }

// Status returns what the run does.
func (c Client) Status(ctx context.Context) (*Status, error) {
	var status *Status
	_, err := c.ask(ctx, ask("status"), func(l line) error {
		if l.Status != nil {
			status = l.Status
		}
		return nil
	})
	if err == nil && status == nil {
		err = ErrProtocol
	}
	return status, err
}

// Tail gives the run's messages to show, and the number of messages to missed that a follower could not be given, which
// are none of those that the run keeps. If the run is over, the End says how it ended. Where the run cuts the answer
// off because show takes long, Tail asks for the rest; what the run does not keep is lost meanwhile, and not counted.
func (c Client) Tail(ctx context.Context, o TailOptions, show func(Message) error, missed func(uint64)) (End, error) {
	request := asked{head: ask("tail").head, TailOptions: o}
	return c.askOn(ctx, &request, func(l line) (took bool, err error) {
		if l.Omitted > 0 {
			missed(l.Omitted)
		}
		if l.Message == nil {
			return false, nil
		}
		if n := l.Message.Seq; n >= 0 {
			request.From = uint64(n) + 1
		}
		return true, show(*l.Message)
	})
}

// Console gives show what the run keeps of the guest's console behind its first from bytes, in pieces, and where each
// of them begins. If follow is set, it goes on to the run's end. Where the run cuts the answer off because show takes
// long, Console asks for the rest.
func (c Client) Console(ctx context.Context, from uint64, follow bool, show func(p []byte, at uint64) error) (End,
	error) {
	request := asked{head: ask("console").head, TailOptions: TailOptions{From: from, Follow: follow}}
	return c.askOn(ctx, &request, func(l line) (took bool, err error) {
		if l.At == nil {
			return false, nil
		}
		request.From = *l.At + uint64(len(l.Data))
		return true, show(l.Data, *l.At)
	})
}

// Ring writes the ring's region to w as it is now, as ktstr-vmm inspect reads it. The guest may write while it is read.
func (c Client) Ring(ctx context.Context, w io.Writer) error {
	var size, written uint64
	fill := func(to uint64) error {
		n, err := io.CopyN(w, zeros{}, int64(to-written))
		written += uint64(n)
		return err
	}
	_, err := c.ask(ctx, ask("ring"), func(l line) error {
		if l.Size != nil {
			size = *l.Size
		}
		if size > maxRing {
			return fmt.Errorf("%w: a ring of %d bytes, where %d is the most", ErrProtocol, size, maxRing)
		}
		if l.At == nil {
			return nil
		}
		if *l.At < written || *l.At > size || uint64(len(l.Data)) > size-*l.At {
			return fmt.Errorf("%w: %d bytes at %d of a ring of %d", ErrProtocol, len(l.Data), *l.At, size)
		}
		if err := fill(*l.At); err != nil {
			return err
		}
		n, err := w.Write(l.Data)
		written += uint64(n)
		return err
	})
	if err == nil && (size == 0 || written > size) {
		err = fmt.Errorf("%w: %d bytes of a ring of %d", ErrProtocol, written, size)
	}
	if err != nil {
		return err
	}
	return fill(size)
}

// zeros is a reader of zeros without end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Metrics returns the run's metrics in Prometheus's text format.
func (c Client) Metrics(ctx context.Context) (text string, err error) {
	_, err = c.ask(ctx, ask("metrics"), func(l line) error {
		if len(text)+len(l.Text) > maxLine {
			return fmt.Errorf("%w: metrics of more than %d bytes", ErrProtocol, maxLine)
		}
		text += l.Text
		return nil
	})
	return text, err
}

// Dump makes the run ask the guest for a dump of its scheduler's state.
func (c Client) Dump(ctx context.Context) error { return c.do(ctx, ask("dump")) }

// Stall makes the run ask the guest to stall its scheduler.
func (c Client) Stall(ctx context.Context) error { return c.do(ctx, ask("stall")) }

// Signal sets one of the ring's signal slots.
func (c Client) Signal(ctx context.Context, slot int, value byte) error {
	return c.do(ctx, asked{head: ask("signal").head, Slot: &slot, Value: new(int(value))})
}

// Stop ends the run as a SIGTERM does: its guest is asked to stop, or, if now is set, is not.
func (c Client) Stop(ctx context.Context, now bool) error {
	return c.do(ctx, asked{head: ask("stop").head, Now: now})
}

// asked is a request as clients send it.
type asked struct {
	head
	TailOptions
	Slot  *int `json:"slot,omitempty"`
	Value *int `json:"value,omitempty"`
	Now   bool `json:"now,omitempty"`
}

// ask returns a request that is no more than its verb.
func ask(verb string) asked { return asked{head: head{Version, verb}} }

func (c Client) do(ctx context.Context, request asked) error {
	_, err := c.ask(ctx, request, func(line) error { return nil })
	return err
}

// askOn is ask, and asks for the rest of an answer that breaks off, as often as something of it was taken, for which
// take changes the request.
func (c Client) askOn(ctx context.Context, request *asked, take func(line) (bool, error)) (End, error) {
	var brokeOff error
	for {
		took := false
		end, err := c.ask(ctx, *request, func(l line) error {
			one, err := take(l)
			took = took || one
			return err
		})
		switch {
		case errors.Is(err, ErrNotRunning) && brokeOff != nil:
			return end, brokeOff
		case !took || !errors.Is(err, ErrOver):
			return end, err
		}
		brokeOff = err
	}
}

// ask sends a request and gives the answer's lines to take, but for the last.
func (c Client) ask(ctx context.Context, request asked, take func(line) error) (End, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return End{}, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	text, err := json.Marshal(request)
	if err != nil {
		return End{}, err
	}
	_, _ = conn.Write(append(text, '\n')) // one that is refused has an answer all the same
	var answer io.Reader = conn
	if !request.Follow {
		answer = prompt{ctx, conn}
	}
	end, err := read(answer, take)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return end, err
}

// prompt is an answer that has to come without long pauses.
type prompt struct {
	ctx  context.Context
	conn net.Conn
}

// Read implements io.Reader.
func (p prompt) Read(b []byte) (int, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(silenceLimit))
	if err := p.ctx.Err(); err != nil { // after the deadline is set, for its end sets one, too
		return 0, err
	}
	return p.conn.Read(b)
}

// dial connects to the run.
func (c Client) dial(ctx context.Context) (net.Conn, error) {
	if len(c.Path) > maxPath {
		return nil, fmt.Errorf("%s: the path of a socket has at most %d bytes, this one has %d", c.Path, maxPath,
			len(c.Path))
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.Path)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", c.Path, ErrNotRunning)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return conn, err
}

// read reads an answer.
func read(r io.Reader, take func(line) error) (End, error) {
	a := newAnswer(r)
	for {
		l, err := a.next()
		if err != nil {
			return End{}, err
		}
		if l.End != nil {
			return *l.End, nil
		}
		if err := take(l); err != nil {
			return End{}, err
		}
	}
}

// answer is an answer's lines.
type answer struct {
	lines *bufio.Scanner
	begun bool
}

func newAnswer(r io.Reader) *answer {
	a := &answer{lines: bufio.NewScanner(r)}
	a.lines.Buffer(make([]byte, 0, 2*chunkSize), maxLine)
	a.lines.Split(wholeLines)
	return a
}

// next returns the next line, or the error that it has.
func (a *answer) next() (l line, err error) {
	if !a.lines.Scan() {
		switch err := a.lines.Err(); {
		case errors.Is(err, bufio.ErrTooLong):
			return l, fmt.Errorf("%w: a line of it has more than %d bytes", ErrProtocol, maxLine)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return l, context.DeadlineExceeded
		}
		return l, fmt.Errorf("the answer broke off: %w, or this client was too slow", ErrOver)
	}
	if err := json.Unmarshal(a.lines.Bytes(), &l); err != nil {
		return l, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	first := !a.begun
	a.begun = true
	switch {
	case first && l.Version == 0:
		return l, fmt.Errorf("%w: it has no ktstr_vmm_control", ErrProtocol)
	case first && l.Version != Version:
		return l, fmt.Errorf("%w: it is of version %d, and this is version %d: use the ktstr-vmm of the run",
			ErrProtocol, l.Version, Version)
	case l.Error != nil:
		return l, l.Error
	}
	return l, nil
}

// wholeLines is bufio.ScanLines without a last line that has no end: an answer is cut off anywhere.
func wholeLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if atEOF && bytes.IndexByte(data, '\n') < 0 {
		return len(data), nil, nil
	}
	return bufio.ScanLines(data, atEOF)
}
