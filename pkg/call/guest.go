package call

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Guest is the guest's side of an area. It must be the only one.
type Guest struct {
	attachedWord guestmem.Uint32
	slots        []*guestSlot // sorted by room
	bell         func()
	kick         chan struct{} // there is a new call, or an answer: look more often

	mu      sync.Mutex
	waiting int           // calls that have no answer yet
	freed   chan struct{} // closed, and replaced, when a slot is free again
	lastRun time.Time     // when a call was made or answered
}

// guestSlot is a slot and who waits for its answer.
type guestSlot struct {
	slot
	busy   bool
	caller *caller // nil: nobody does any more, or has the answer
}

// caller waits for an answer.
type caller struct {
	buf      []byte // for the answer's data
	kind     Kind
	n        int
	err      error
	answered chan struct{}
}

// Attach returns the guest's side of the area that the host has prepared, and tells the host that it is there. bell
// rings the host's doorbell, if there is one; it must not block. Attach fails with ErrArea.
func Attach(area *guestmem.Window, bell func()) (*Guest, error) {
	if area.Len() < headerSize {
		return nil, fmt.Errorf("%w: it has %d bytes, its header takes %d", ErrArea, area.Len(), headerSize)
	}
	header := make([]byte, headerSize)
	if err := area.Read(header, 0); err != nil {
		return nil, err
	}
	spans, err := decodeHeader(header, area.Len())
	if err != nil {
		return nil, err
	}
	g := &Guest{bell: bell, kick: make(chan struct{}, 1), freed: make(chan struct{})}
	for _, s := range spans {
		x, err := newSlot(area, s)
		if err != nil {
			return nil, err
		}
		g.slots = append(g.slots, &guestSlot{slot: x})
	}
	if g.attachedWord, err = area.Uint32(offAttached); err != nil {
		return nil, err
	}
	g.attachedWord.Store(attached)
	return g, nil
}

// How many bytes a call of STDIN or OUTPUT carries: in the largest slot, and in a small one, as sessions take them.
const (
	MostBytes = largestSlot - SlotHeaderSize
	FewBytes  = smallSlot - SlotHeaderSize - 4
)

// Stdin waits for the next bytes of a session's stdin, and returns how many of them are in buf. None are the end. The
// errors of this and the following methods are call's.
func (g *Guest) Stdin(ctx context.Context, session uint32, buf []byte) (n int, err error) {
	return g.call(ctx, Stdin, stdinRequest{session, uint32(len(buf))}.encode(), buf)
}

// Winch waits for another size of a session's window, or for its end.
func (g *Guest) Winch(ctx context.Context, session uint32) (size WindowSize, hungUp bool, err error) {
	var buf [4]byte
	n, err := g.call(ctx, Winch, encodeSession(session), buf[:])
	if err != nil || n == 0 {
		return size, err == nil, err
	}
	size, err = decodeWindowSize(buf[:n])
	return size, false, err
}

// Next waits for a session that the host wants, and returns its number and what is to run in it.
func (g *Guest) Next(ctx context.Context) (session uint32, p Program, err error) {
	buf := make([]byte, maxProgram)
	n, err := g.call(ctx, Next, nil, buf)
	if err != nil {
		return 0, p, err
	}
	return decodeNext(buf[:n])
}

// Output passes on what a session wrote, and returns when the host has room for more. p has at most FewBytes bytes.
func (g *Guest) Output(ctx context.Context, session uint32, p []byte) error {
	_, err := g.call(ctx, Output, encodeOutput(session, p), nil)
	return err
}

// Closed says that a session has ended, with the exit code that a shell would give it. That of the command returns when
// the guest may end.
func (g *Guest) Closed(ctx context.Context, session uint32, code int) error {
	_, err := g.call(ctx, Closed, closedRequest{session, uint32(code)}.encode(), nil)
	return err
}

// call makes a call and waits for its answer, of which the data is copied to buf. It fails with ErrRefused if the host
// says so, with ErrFormat for an answer that can't be right, or with ctx's error. When ctx ends, the host may do what
// it was asked for all the same.
func (g *Guest) call(ctx context.Context, k Kind, data, buf []byte) (n int, err error) {
	s, err := g.takeSlot(ctx, max(len(data), len(buf)))
	if err != nil {
		return 0, err
	}
	c := &caller{buf: buf, kind: k, answered: make(chan struct{})}
	g.mu.Lock()
	s.caller = c
	g.waiting++
	s.put(request, k, data)
	now := time.Now()
	quiet := now.Sub(g.lastRun) > napLimit
	g.lastRun = now
	g.mu.Unlock()
	if quiet { // else the host is awake
		g.bell()
	}
	wake(g.kick)
	select {
	case <-c.answered:
		return c.n, c.err
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		if s.caller == c {
			s.caller = nil // the slot is free when the answer has come
		}
		return 0, context.Cause(ctx)
	}
}

// takeSlot returns the smallest free slot with room for so much data, when there is one.
func (g *Guest) takeSlot(ctx context.Context, room int) (*guestSlot, error) {
	for {
		g.mu.Lock()
		var best *guestSlot
		fits := false
		for _, s := range g.slots {
			if s.room() < room {
				continue
			}
			fits = true
			if !s.busy && (best == nil || s.room() < best.room()) {
				best = s
			}
		}
		freed := g.freed
		if best != nil {
			best.busy = true
		}
		g.mu.Unlock()
		switch {
		case best != nil:
			return best, nil
		case !fits:
			return nil, fmt.Errorf("%w: %d bytes, no slot has room for them", ErrFormat, room)
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Poll looks for answers once. When nothing goes on, Run leaves that to whoever calls Poll about every 10 ms.
func (g *Guest) Poll() {
	if g.poll() {
		wake(g.kick)
	}
}

// poll reports whether there was an answer.
func (g *Guest) poll() (found bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting == 0 {
		return false
	}
	for _, s := range g.slots {
		if !s.busy || s.state.Load() != response {
			continue
		}
		found = true
		if c := s.caller; c != nil {
			c.n, c.err = s.answer(c)
			close(c.answered)
		}
		s.caller = nil
		s.busy = false
		s.state.Store(free)
		g.waiting--
	}
	if found {
		g.lastRun = time.Now()
		close(g.freed)
		g.freed = make(chan struct{})
	}
	return found
}

// answer takes the slot's answer for its caller.
func (s *guestSlot) answer(c *caller) (int, error) {
	buf := c.buf
	if len(buf) < s.room() {
		buf = make([]byte, s.room()) // a refusal may be longer than what was asked for
	}
	k, data, err := s.take(buf)
	switch {
	case err != nil:
		return 0, err
	case k == Refused:
		return 0, fmt.Errorf("%w, %v: %s", ErrRefused, c.kind, data)
	case k != c.kind:
		return 0, fmt.Errorf("%w: %v is the answer to %v", ErrFormat, k, c.kind)
	case len(data) > len(c.buf):
		return 0, fmt.Errorf("%w: %v has %d bytes, at most %d were asked for", ErrFormat, k, len(data), len(c.buf))
	}
	return copy(c.buf, data), nil
}

// Run looks for answers while calls flow, until ctx ends.
func (g *Guest) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.kick:
		}
		g.spin()
		for pause := firstPause; pause < idlePoll && ctx.Err() == nil; pause *= 2 {
			if pause < napLimit {
				nap(pause)
			} else {
				select {
				case <-ctx.Done():
					return
				case <-g.kick:
					wake(g.kick)
				case <-time.After(pause):
				}
			}
			if g.poll() {
				wake(g.kick)
			}
			if len(g.kick) > 0 {
				break
			}
		}
	}
}

// spin looks for answers without a sleep for as long as a host takes that is awake: where instructions are emulated,
// the shortest sleep takes longer. It lets everybody else go first.
func (g *Guest) spin() {
	for end := time.Now().Add(spinLimit); time.Now().Before(end); {
		if g.poll() {
			end = time.Now().Add(spinLimit)
		}
		runtime.Gosched()
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// wake makes whoever waits for a channel go on.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
