package call

import (
	"context"
	"fmt"
	"io"
)

// maxBuffered is how much of a session's input, and of its output, waits for who takes it, in bytes. It is more than
// any slot holds.
const maxBuffered = 64 << 10

// Session is a program in the guest on a terminal of its own. Its methods may be called concurrently.
type Session struct {
	h       *Host
	number  uint32
	program Program

	// Guarded by the host's mu.
	opened  bool // the guest has asked for it
	in, out []byte
	size    *WindowSize // that the guest does not know yet
	hungUp  bool
	ended   bool
	code    int
	err     error
}

// Open makes the guest start a program on a terminal of its own, and returns when the guest has taken that on. It fails
// with ErrSessions, ErrOver, ErrFormat if the program's name and arguments are too long, or ctx's error. What kept the
// program from starting, the guest says on the session's terminal.
func (h *Host) Open(ctx context.Context, p Program) (*Session, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	defer h.broadcastAt(ctx)()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.over:
		return nil, ErrOver
	case len(h.sessions) >= MaxSessions:
		return nil, fmt.Errorf("%w: %d", ErrSessions, MaxSessions)
	}
	h.last++
	s := &Session{h: h, number: h.last, program: p}
	h.sessions[s.number] = s
	h.opening = append(h.opening, s)
	h.Wake()
	for !s.opened && !s.ended && ctx.Err() == nil {
		h.changed.Wait()
	}
	switch {
	case s.opened:
		return s, nil
	case s.ended:
		return nil, s.err
	}
	delete(h.sessions, s.number)
	for i, o := range h.opening {
		if o == s {
			h.opening = append(h.opening[:i], h.opening[i+1:]...)
			break
		}
	}
	return nil, fmt.Errorf("the guest has not asked for a new session: %w", context.Cause(ctx))
}

// broadcastAt wakes all who wait when ctx ends, until what it returns is called.
func (h *Host) broadcastAt(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.changed.Broadcast()
	})
	return func() { stop() }
}

// Read reads what comes out of the session's terminal. It returns io.EOF when the session has ended and all was read,
// and ErrOver if the guest has ended.
func (s *Session) Read(p []byte) (int, error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	for len(s.out) == 0 && !s.ended && !s.hungUp {
		s.h.changed.Wait()
	}
	if len(s.out) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		return 0, io.EOF
	}
	n := copy(p, s.out)
	s.out = s.out[:copy(s.out, s.out[n:])]
	s.h.Wake() // there is room
	return n, nil
}

// Write types p on the session's terminal. It waits for the guest if that takes nothing, and fails with
// io.ErrClosedPipe when the session has ended or was closed.
func (s *Session) Write(p []byte) (n int, err error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	for n < len(p) {
		for len(s.in) == maxBuffered && !s.ended && !s.hungUp {
			s.h.changed.Wait()
		}
		if s.ended || s.hungUp {
			return n, io.ErrClosedPipe
		}
		part := p[n:min(len(p), n+maxBuffered-len(s.in))]
		s.in = append(s.in, part...)
		n += len(part)
		s.h.Wake()
	}
	return n, nil
}

// Resize tells the guest the size of the terminal's window.
func (s *Session) Resize(rows, cols uint16) { s.resize(WindowSize{rows, cols}) }

func (s *Session) resize(size WindowSize) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.size = &size
	s.h.Wake()
}

// Wait waits for the session's end and returns its exit code, as a shell has it. It fails with ErrOver if the guest has
// ended before, or with ctx's error.
func (s *Session) Wait(ctx context.Context) (code int, err error) {
	defer s.h.broadcastAt(ctx)()
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	for !s.ended && ctx.Err() == nil {
		s.h.changed.Wait()
	}
	if !s.ended {
		return 0, context.Cause(ctx)
	}
	return s.code, s.err
}

// Close hangs up, if the session has not ended: its processes get a SIGHUP. It returns at once; Wait waits for the end.
// What a session has shown that has ended can still be read.
func (s *Session) Close() error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.ended {
		return nil
	}
	s.hungUp, s.in, s.out = true, nil, nil
	s.h.changed.Broadcast()
	s.h.Wake()
	return nil
}

// end says that there is no more of the session. The host's mu is held.
func (s *Session) end(code int, err error) { s.ended, s.code, s.err, s.in = true, code, err, nil }

// takeOutput keeps what the session wrote, if there is room for it. Who has hung up does not want it.
func (s *Session) takeOutput(p []byte) bool {
	switch {
	case s.hungUp:
		return true
	case len(s.out)+len(p) > maxBuffered:
		return false
	}
	s.out = append(s.out, p...)
	s.h.changed.Broadcast()
	return true
}

// giveInput takes up to most bytes of what was typed. Where the session was hung up, there are no more.
func (s *Session) giveInput(most uint32) (data []byte, ready bool) {
	if s.hungUp {
		return nil, true
	}
	n := min(len(s.in), int(most))
	if n == 0 {
		return nil, false
	}
	data = append(data, s.in[:n]...)
	s.in = s.in[:copy(s.in, s.in[n:])]
	s.h.changed.Broadcast()
	return data, true
}

// giveSize takes the window's size, if it is new, or that the session was hung up.
func (s *Session) giveSize() (data []byte, ready bool) {
	switch {
	case s.hungUp:
		return nil, true
	case s.size == nil:
		return nil, false
	}
	data, s.size = s.size.encode(), nil
	return data, true
}
