package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/call"
)

const (
	openLimit   = 10 * time.Second       // for a guest to take on a session
	leavePeriod = 200 * time.Millisecond // at which is looked whether a session's client is still there
	maxTyped    = 2 << 10                // bytes in a frame of a Shell's
)

// shellRequest asks for a session in the guest. Behind the request the client sends frames, behind the answer's first
// line it gets data, until one of them ends it.
type shellRequest struct {
	head
	program
}

// program is a call.Program in JSON.
type program struct {
	Args []string `json:"args,omitempty"`
	Term string   `json:"term,omitempty"`
	Rows uint16   `json:"rows,omitempty"`
	Cols uint16   `json:"cols,omitempty"`
}

// frame is a line of the client's in a session: what was typed, or the window's new size.
type frame struct {
	Data []byte `json:"data,omitempty"`
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`
}

func (r *shellRequest) answer(c *conversation) (*End, error) {
	s, err := c.open(r.program)
	if err != nil {
		return nil, err
	}
	ctx, leave := context.WithCancel(c.closing)
	var all sync.WaitGroup
	var wrongFrame error
	_ = c.conn.SetReadDeadline(time.Time{}) // Close sets one, too, and then ctx has ended
	all.Go(func() {
		wrongFrame = c.typed(s)
		leave()
		_ = s.Close() // it never fails
	})
	all.Go(func() { c.whileThere(ctx, s) })
	code, err := 0, c.shown(s)
	if err == nil {
		code, err = s.Wait(ctx)
	}
	leave()
	_ = s.Close()
	_ = c.conn.SetReadDeadline(time.Now())
	all.Wait()
	switch {
	case wrongFrame != nil:
		return nil, wrongFrame
	case err == nil:
		return &End{ExitCode: &code}, nil
	case errors.Is(err, call.ErrOver) || c.closing.Err() != nil:
		return c.over()
	case errors.Is(err, context.Canceled): // the client has hung up
		return nil, nil
	}
	return nil, err
}

// open opens a session, and says what to do if that can't be.
func (c *conversation) open(p program) (*call.Session, error) {
	ctx, cancel := context.WithTimeoutCause(c.closing, openLimit, fmt.Errorf("it has had %v", openLimit))
	defer cancel()
	s, err := c.run.Open(ctx, call.Program{Args: p.Args, Term: p.Term, Rows: p.Rows, Cols: p.Cols})
	switch {
	case c.closing.Err() != nil:
		err = ErrOver
	case errors.Is(err, call.ErrSessions):
		err = &Error{CodeBusy, err.Error()}
	case errors.Is(err, call.ErrFormat):
		err = &Error{CodeRequest, err.Error()}
	}
	if err != nil {
		if s != nil {
			_ = s.Close()
		}
		return nil, err
	}
	return s, nil
}

// over is the end of a session whose guest has ended first.
func (c *conversation) over() (*End, error) {
	select {
	case <-c.run.Done():
	case <-c.closing.Done():
		select {
		case <-c.run.Done():
		default:
			return nil, ErrOver
		}
	}
	return c.result(0), nil
}

// shown sends what the session's terminal shows, no faster than the client takes it, until the session ends or is hung
// up.
func (c *conversation) shown(s *call.Session) error {
	err := errors.Join(c.send(line{Opened: true}), c.out.Flush())
	buf := make([]byte, chunkSize)
	for err == nil {
		n, end := s.Read(buf)
		if n > 0 {
			err = errors.Join(c.send(line{Data: buf[:n]}), c.out.Flush())
		}
		if end != nil { // of which Wait has the reason
			break
		}
	}
	return err
}

// typed passes on the client's frames, until there are no more or the session has ended. It fails if one is wrong.
func (c *conversation) typed(s *call.Session) error {
	for {
		text, err := c.in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return wrong("shell: a frame has more than %d bytes before the end of its line", MaxRequest)
		} else if err != nil {
			return nil
		}
		var f frame
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			return wrong("shell: a frame is no JSON object with data, or rows and cols: %v", err)
		}
		if _, err := d.Token(); err != io.EOF {
			return wrong("shell: a line has more than one frame")
		}
		if f.Rows > 0 && f.Cols > 0 {
			s.Resize(f.Rows, f.Cols)
		}
		if _, err := s.Write(f.Data); err != nil {
			return nil
		}
	}
}

// whileThere hangs up when the client is gone: who waits for the guest to take what was typed does not see it go.
func (c *conversation) whileThere(ctx context.Context, s *call.Session) {
	ticks := time.NewTicker(leavePeriod)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
			if hungUp(c.conn) {
				_ = s.Close()
				return
			}
		}
	}
}

// Shell is a program in the guest on a terminal of its own, as call.Session is. Its methods may be called concurrently,
// but for Read and Wait.
type Shell struct {
	conn    net.Conn
	answer  *answer
	stop    func() bool
	ctx     context.Context
	pending []byte
	end     *End
	err     error // io.EOF with end

	mu sync.Mutex // of what is written
}

// Shell starts a program in the guest, or its shell. It fails as other methods do, and the connection lasts until Close
// is called or ctx ends. A session that is open may be silent for as long as it likes.
func (c Client) Shell(ctx context.Context, p call.Program) (*Shell, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	s := &Shell{conn: conn, answer: newAnswer(conn), ctx: ctx}
	_ = conn.SetDeadline(time.Now().Add(openLimit + silenceLimit)) // the run itself waits for its guest
	s.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	request := shellRequest{ask("shell").head, program{p.Args, p.Term, p.Rows, p.Cols}}
	_ = s.write(request) // one that is refused has an answer all the same
	err = s.next()
	_ = conn.SetDeadline(time.Time{})
	if ctx.Err() != nil { // after the deadline is cleared, for its end sets one, too
		err = ctx.Err()
	}
	if err != nil {
		_ = s.Close()
		if err == io.EOF {
			err = ErrProtocol
		}
		return nil, err
	}
	return s, nil
}

// next reads a line of the answer.
func (s *Shell) next() error {
	l, err := s.answer.next()
	switch {
	case err != nil && s.ctx.Err() != nil:
		s.err = s.ctx.Err()
	case err != nil:
		s.err = err
	case l.End != nil:
		s.end, s.err = l.End, io.EOF
	default:
		s.pending = l.Data
	}
	return s.err
}

// Read reads what comes out of the session's terminal. It returns io.EOF at its end.
func (s *Shell) Read(p []byte) (int, error) {
	for len(s.pending) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.pending)
	s.pending = s.pending[n:]
	return n, nil
}

// Write types p on the session's terminal. It waits for the guest to take it.
func (s *Shell) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		part := p[n:min(len(p), n+maxTyped)]
		if err = s.write(frame{Data: part}); err == nil {
			n += len(part)
		}
	}
	return n, err
}

// Resize tells the guest the size of the terminal's window.
func (s *Shell) Resize(rows, cols uint16) error { return s.write(frame{Rows: rows, Cols: cols}) }

func (s *Shell) write(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err = s.conn.Write(append(text, '\n'))
	return err
}

// Wait reads on to the session's end and returns its exit code, as a shell has it. If the run ended first, it fails
// with ErrOver, and says how.
func (s *Shell) Wait() (code int, err error) {
	_, _ = io.Copy(io.Discard, s) // next keeps its error
	switch {
	case s.end == nil:
		return 0, s.err
	case s.end.ExitCode != nil:
		if code = *s.end.ExitCode; code < 0 || code > math.MaxUint8 {
			return 0, fmt.Errorf("%w: a session's exit code is %d, it can be 0 to %d", ErrProtocol, code, math.MaxUint8)
		}
		return code, nil
	case s.end.Result != nil:
		return 0, fmt.Errorf("%w: %s: %s", ErrOver, s.end.Result.Outcome, s.end.Result.Reason)
	}
	return 0, fmt.Errorf("%w: a session has no exit code", ErrProtocol)
}

// Close hangs up, if the session has not ended. A Read, Write or Resize that waits fails.
func (s *Shell) Close() error {
	s.stop()
	return s.conn.Close()
}
