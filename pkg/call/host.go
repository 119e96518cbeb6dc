package call

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// MaxSessions is how many sessions a guest has at a time, beside the command.
const MaxSessions = 8

// Errors of the host's side, for errors.Is.
var (
	ErrOver     = errors.New("the guest's end is here")
	ErrSessions = errors.New("the guest has as many sessions as it can have")
)

// Config says what a Host answers with.
type Config struct {
	Area *guestmem.Window // of Size bytes; used by the Host alone, until Stop returns

	// Stdin is read when the guest's command wants bytes, and no more than it wants, by a goroutine of its own. A Read
	// that blocks holds up nothing; if it still does when the Host is stopped, the goroutine ends when it returns. Nil:
	// there are none.
	Stdin io.Reader
	// OnAttached, if not nil, is called once, when the guest has said that it is ready to call. It must not block.
	OnAttached func()
	// OnStdinError, if not nil, is called with the error that ended Stdin, other than io.EOF.
	OnStdinError func(error)
	// OnEnd, if not nil, is called on a goroutine of its own when the guest's command has ended, if the guest says so,
	// and the guest ends when it has returned. ctx ends when the Host is stopped.
	OnEnd func(ctx context.Context, code int)
}

// Host is the host's side of an area. It answers the guest's calls in a goroutine of its own, from Start to Stop. The
// guest is not trusted: what it can make the host do or keep is bounded by the area's size, and what it can make the
// host wait for is nothing. Other methods may be called concurrently, at any time.
type Host struct {
	cfg    Config
	woken  chan struct{} // something may be answered
	want   chan int      // bytes of Stdin
	quit   chan struct{}
	stop   sync.Once
	loop   sync.WaitGroup
	ctx    context.Context // ends with quit
	cancel context.CancelFunc

	// The loop's alone.
	word  guestmem.Uint32
	isUp  bool
	slots []hostSlot

	mu       sync.Mutex
	changed  *sync.Cond // of anything that follows
	over     bool
	stdin    stdin
	command  *Session
	sessions map[uint32]*Session // those that are not closed, in the guest or waiting to be opened there
	opening  []*Session          // which the guest has not asked for yet
	last     uint32              // session's number
	ended    bool                // the command: OnEnd was called
	released bool                // and has returned
}

// hostSlot is a slot and the call in it that has no answer yet.
type hostSlot struct {
	slot
	buf  []byte
	call pending
	busy bool // there is one
}

// pending is a call that was taken.
type pending struct {
	kind    Kind
	session uint32
	max     uint32
	data    []byte
	code    uint32
}

// stdin is what was read for the command.
type stdin struct {
	reading bool   // somebody is at it
	data    []byte // read, and not taken by the guest
	ended   bool
}

// NewHost prepares the area, whose guest does not run yet, and returns the host's side. It fails with ErrArea.
func NewHost(cfg Config) (*Host, error) {
	if cfg.Area.Len() != Size {
		return nil, fmt.Errorf("%w: it has %d bytes, %d are expected", ErrArea, cfg.Area.Len(), Size)
	}
	h := &Host{
		cfg: cfg, woken: make(chan struct{}, 1), want: make(chan int, 1),
		quit: make(chan struct{}), sessions: map[uint32]*Session{},
	}
	h.changed = sync.NewCond(&h.mu)
	h.command = &Session{h: h, number: CommandSession}
	h.stdin.ended = cfg.Stdin == nil
	h.ctx, h.cancel = context.WithCancel(context.Background())
	spans := layout()
	if err := cfg.Area.Write(encodeHeader(spans), 0); err != nil {
		return nil, err
	}
	for _, s := range spans {
		x, err := newSlot(cfg.Area, s)
		if err != nil {
			return nil, err
		}
		h.slots = append(h.slots, hostSlot{slot: x, buf: make([]byte, x.room())})
	}
	var err error
	h.word, err = cfg.Area.Uint32(offAttached)
	return h, err
}

// Start begins to answer.
func (h *Host) Start() {
	h.loop.Go(h.run)
	if h.cfg.Stdin != nil {
		go h.readStdin()
	}
}

// Stop ends the answering. The area is not touched when it has returned, which does not take long: the loop waits for
// nothing else. All sessions are over then.
func (h *Host) Stop() {
	h.stop.Do(func() {
		close(h.quit)
		h.cancel()
	})
	h.loop.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	for _, s := range h.sessions {
		s.end(0, ErrOver)
	}
	clear(h.sessions)
	h.opening = nil
	h.changed.Broadcast()
}

// Wake makes the host look for calls now: the guest's doorbell has rung. It never blocks.
func (h *Host) Wake() { wake(h.woken) }

// Resize tells the command that its terminal's window has another size.
func (h *Host) Resize(size WindowSize) { h.command.resize(size) }

// run answers calls until Stop.
func (h *Host) run() {
	timer := time.NewTimer(idlePoll)
	defer timer.Stop()
	worked := time.Duration(0)
	for pause := idlePoll; ; {
		start := time.Now()
		if h.tick() {
			pause = firstPause
		} else {
			pause = min(2*pause, idlePoll)
		}
		if worked += time.Since(start); worked >= workLimit {
			nap(min(restFactor*worked, napLimit))
			worked = 0
		}
		if pause < napLimit && !(pause == firstPause && h.reads()) {
			nap(pause)
			select {
			case <-h.quit:
				return
			default:
				continue
			}
		}
		timer.Reset(max(pause, napLimit))
		select {
		case <-h.quit:
			return
		case <-h.woken:
			pause = firstPause
		case <-timer.C:
		}
	}
}

// reads reports whether stdin is being read, whose end wakes the loop.
func (h *Host) reads() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stdin.reading
}

// tick looks at all slots once, and reports whether there was something to do.
func (h *Host) tick() (busy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.isUp && h.word.Load() == attached {
		h.isUp = true
		if h.cfg.OnAttached != nil {
			h.cfg.OnAttached()
		}
	}
	for i := range h.slots {
		s := &h.slots[i]
		if !s.busy {
			if s.state.Load() != request {
				continue
			}
			busy = true
			if err := h.accept(s); err != nil {
				s.refuse(err)
				continue
			}
		}
		data, ready, err := h.respond(&s.call)
		switch {
		case err != nil:
			s.refuse(err)
		case ready:
			s.put(response, s.call.kind, data[:min(len(data), s.room())])
			s.busy = false
		default:
			continue
		}
		busy = true
	}
	return busy
}

func (s *hostSlot) refuse(err error) {
	text := err.Error()
	s.put(response, Refused, []byte(text[:min(len(text), s.room())]))
	s.busy = false
}

// accept takes a call out of its slot. From then on only the copy counts.
func (h *Host) accept(s *hostSlot) error {
	k, data, err := s.take(s.buf)
	if err != nil {
		return err
	}
	c := pending{kind: k}
	switch k {
	case Stdin:
		var r stdinRequest
		if r, err = decodeStdinRequest(data); err == nil && r.Max == 0 {
			err = fmt.Errorf("%w: %v of no bytes", ErrFormat, k)
		}
		c.session, c.max = r.Session, min(r.Max, uint32(s.room()))
	case Winch:
		c.session, err = decodeSession(k, data)
	case Next:
		switch {
		case len(data) != 0:
			err = wrongLength(k, data, 0)
		case s.room() < maxProgram:
			err = fmt.Errorf("%w: %v in a slot with room for %d bytes, it takes %d", ErrFormat, k, s.room(), maxProgram)
		}
	case Output:
		c.session, c.data, err = decodeOutput(data)
	case Closed:
		var r closedRequest
		r, err = decodeClosedRequest(data)
		c.session, c.code = r.Session, r.Code
	default:
		err = fmt.Errorf("%w: %v is not known here", ErrFormat, k)
	}
	if err != nil {
		return err
	}
	s.call, s.busy = c, true
	return nil
}

// respond returns the answer to a call, if it is ready.
func (h *Host) respond(c *pending) (data []byte, ready bool, err error) {
	if c.kind == Next {
		return h.respondNext()
	}
	if c.session == CommandSession {
		return h.respondCommand(c)
	}
	s := h.sessions[c.session]
	switch {
	case c.kind == Output || c.kind == Closed:
		if s == nil || !s.opened {
			return nil, false, fmt.Errorf("%w: %v of session %d, which is not open", ErrFormat, c.kind, c.session)
		}
		if c.kind == Output {
			return nil, s.takeOutput(c.data), nil
		}
		delete(h.sessions, c.session)
		s.end(int(c.code), nil)
		h.changed.Broadcast()
		return nil, true, nil
	case s == nil || !s.opened: // it was closed, or never there: that was all
		return nil, true, nil
	case c.kind == Stdin:
		data, ready = s.giveInput(c.max)
	default:
		data, ready = s.giveSize()
	}
	return data, ready, nil
}

// respondCommand is respond for what concerns the command.
func (h *Host) respondCommand(c *pending) (data []byte, ready bool, err error) {
	switch c.kind {
	case Stdin:
		data, ready = h.giveStdin(c.max)
		return data, ready, nil
	case Winch:
		data, ready = h.command.giveSize()
		return data, ready, nil
	case Closed:
		if h.cfg.OnEnd == nil {
			return nil, true, nil
		}
		if !h.ended {
			h.ended = true
			go h.endCommand(int(c.code))
		}
		return nil, h.released, nil
	}
	return nil, false, fmt.Errorf("%w: %v of the command, whose output goes through the ring", ErrFormat, c.kind)
}

// endCommand lets the guest end when OnEnd has returned.
func (h *Host) endCommand(code int) {
	h.cfg.OnEnd(h.ctx, code)
	h.mu.Lock()
	h.released = true
	h.mu.Unlock()
	h.Wake()
}

// respondNext gives the guest the next session that is to be opened.
func (h *Host) respondNext() (data []byte, ready bool, err error) {
	if len(h.opening) == 0 {
		return nil, false, nil
	}
	s := h.opening[0]
	h.opening = h.opening[1:]
	s.opened = true
	h.changed.Broadcast()
	return encodeNext(s.number, s.program), true, nil
}

// giveStdin takes up to most bytes from what was read of Stdin, or has more read.
func (h *Host) giveStdin(most uint32) (data []byte, ready bool) {
	in := &h.stdin
	switch {
	case len(in.data) > 0:
		n := min(len(in.data), int(most))
		data, in.data = in.data[:n], in.data[n:]
		return data, true
	case in.ended:
		return nil, true
	case !in.reading:
		in.reading = true
		h.want <- int(most) // there is room: nobody is reading
	}
	return nil, false
}

// readStdin reads what is wanted, until that ends or the Host is stopped.
func (h *Host) readStdin() {
	buf := make([]byte, largestSlot)
	for {
		select {
		case <-h.quit:
			return
		case n := <-h.want:
			n, err := h.cfg.Stdin.Read(buf[:min(n, len(buf))])
			if err != nil && !errors.Is(err, io.EOF) && h.ctx.Err() == nil && h.cfg.OnStdinError != nil {
				h.cfg.OnStdinError(err)
			}
			h.mu.Lock()
			h.stdin = stdin{data: buf[:n], ended: err != nil}
			h.mu.Unlock()
			h.Wake()
			if err != nil {
				return
			}
		}
	}
}
