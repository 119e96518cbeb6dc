package run

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// ErrOver means that a run has ended, and its guest's memory is given back.
var ErrOver = errors.New("the run is over")

// ErrBusy means that a run has yet to do what it was asked for before.
var ErrBusy = errors.New("the run has yet to do what it was asked for before")

// maxMessages is how many messages Live.Messages returns at most.
const maxMessages = 1 << 10

// ringPiece is how much of the ring is copied at once. The run's end waits for no more than that: a ring may have
// 1 GiB, and the memory that it is copied to may have to be found first.
const ringPiece = 256 << 10

// Live is a handle on a run, for those who look at it or ask it for something while it goes on. Its methods may be
// called concurrently, at any time. None of them waits for anything outside.
type Live struct {
	run  *run
	ring *guestmem.Window
	requests
	done     chan struct{}
	observer atomic.Pointer[observer] // nil before the guest runs, and where there is nothing to look at

	mu   sync.RWMutex // held while the guest's memory is used
	over bool         // it is given back
}

func newLive(r *run) (*Live, error) {
	ring, err := r.machine.Memory().Window(r.result.RingBase, r.result.RingSize)
	if err != nil {
		return nil, err
	}
	return &Live{run: r, ring: ring, requests: requests{make(chan string, maxRequests), make(chan bool, maxRequests)},
		done: make(chan struct{})}, nil
}

// requests are what a run's own goroutine does.
type requests struct {
	dumps chan string // why the guest is to be asked for one
	stops chan bool   // whether at once
}

const maxRequests = 4 // that wait

// asked returns the requests; none ever come where nobody can make any.
func (l *Live) asked() requests {
	if l == nil {
		return requests{}
	}
	return l.requests
}

// stopRequest stands for a signal where a Live's user ends the run.
type stopRequest struct{}

// Signal implements os.Signal.
func (stopRequest) Signal() {}

// String implements os.Signal.
func (stopRequest) String() string { return "ktstr-vmm ctl stop" }

// Status is how a run stands.
type Status struct {
	ID, Name, Kernel  string
	Arch, Accelerator string
	StartedAt         time.Time
	Elapsed, Timeout  time.Duration
	Phase             Phase
	Ring              monitor.Stats
	LastStimulus      *Stimulus // or nil
	Kept              int       // messages that the run keeps so far: see Live.Messages
	Omitted           uint64    // messages like these for which it had no room
	ConsoleBytes      uint64    // ever written
}

// Status returns how the run stands.
func (l *Live) Status() Status {
	r, h := l.run, l.run.history
	s := Status{ID: r.cfg.ID, Name: r.cfg.Name, Kernel: r.cfg.KernelName, Arch: r.result.Arch,
		Accelerator: r.result.Accelerator, StartedAt: r.result.StartedAt, Elapsed: r.since(), Timeout: r.cfg.Timeout,
		Ring: r.monitor.Stats(), ConsoleBytes: r.console.written()}
	if result := l.Result(); result != nil {
		s.Elapsed = result.Duration
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Kept, s.Omitted = len(h.kept), h.omitted
	if n := len(h.phases); n > 0 {
		s.Phase = h.phases[n-1].Phase
	}
	if h.stimulated {
		last := h.stimulus
		s.LastStimulus = &last
	}
	return s
}

// RequestDump makes the run ask the guest for a dump of its scheduler's state; why is a sentence without its end, for
// the report. It fails with ErrOver or ErrBusy.
func (l *Live) RequestDump(why string) error { return ask(l, l.dumps, why) }

// Stop ends the run like a SIGTERM: the guest is asked to stop, or, where now is set, not asked. It fails with ErrOver
// or ErrBusy.
func (l *Live) Stop(now bool) error { return ask(l, l.stops, now) }

// ask gives a request to the run, which does one after the other.
func ask[T any](l *Live, to chan T, request T) error {
	if l.ended() {
		return ErrOver
	}
	select {
	case to <- request:
		return nil
	default:
		return ErrBusy
	}
}

// ended reports whether the guest has ended, or its machine has not, and was given up.
func (l *Live) ended() bool {
	select {
	case <-l.run.machine.Done():
	case <-l.done:
	default:
		return false
	}
	return true
}

// RequestStall asks the guest to stall its scheduler. It fails with ErrOver.
func (l *Live) RequestStall() error {
	return l.use(func() error {
		l.run.control.RequestStall()
		l.run.history.event(EventStall, "the guest was asked to stall its scheduler")
		return nil
	})
}

// Signal sets one of the ring's signal slots. It fails with shm.ErrSlot or ErrOver.
func (l *Live) Signal(slot shm.Slot, v byte) error {
	return l.use(func() error {
		if err := l.run.control.Signal(slot, v); err != nil {
			return err
		}
		l.run.history.event(EventSignal, fmt.Sprintf("signal slot %d was set to %d", slot, v))
		return nil
	})
}

// ReadRing copies the ring's region from an offset on as it is now, and returns io.EOF at its end, as io.ReaderAt does.
// It fails with ErrOver, with what it has copied until then.
func (l *Live) ReadRing(p []byte, off uint64) (n int, err error) {
	for size := l.ring.Len(); n < len(p); {
		at := off + uint64(n)
		if at >= size {
			return n, io.EOF
		}
		piece := p[n:][:min(uint64(len(p)-n), size-at, ringPiece)]
		if err := l.use(func() error { return readRing(l.ring, piece, at) }); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// readRing copies what is at an offset of a ring's region.
func readRing(ring *guestmem.Window, p []byte, off uint64) error {
	done := 0
	if off < shm.HeaderSize {
		header, err := ringHeader(ring)
		if err != nil {
			return err
		}
		done = copy(p, header[off:])
	}
	return ring.Read(p[done:], off+uint64(done))
}

// ringHeader copies a ring's header, whose words both sides store meanwhile.
func ringHeader(ring *guestmem.Window) (b [shm.HeaderSize]byte, err error) {
	for off := uint64(0); off < shm.HeaderSize; off += 8 {
		word, err := ring.Uint64(off)
		if err != nil {
			return b, err
		}
		binary.LittleEndian.PutUint64(b[off:], word.Load())
	}
	return b, nil
}

// RingSize returns the size of the ring's region in bytes.
func (l *Live) RingSize() uint64 { return l.ring.Len() }

// use does what needs the guest's memory.
func (l *Live) use(do func() error) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.over {
		return ErrOver
	}
	return do()
}

// end keeps everybody away from the guest's memory, from its return on.
func (l *Live) end() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// Console returns what the run keeps of the guest's console behind its first from bytes, and where that begins.
func (l *Live) Console(from uint64) (kept []byte, at uint64) { return l.run.console.from(from) }

// Messages returns messages that the run keeps, at most 1024, from a number on: all but what guests write in bulk. It
// keeps up to 65,536 STIM, and 4,096 of every other type.
func (l *Live) Messages(from int) []Message { return l.run.history.messages(from, maxMessages) }

// Keeps reports whether runs keep messages of a type, for Messages.
func Keeps(t shm.Type) bool { return roomFor(t) > 0 }

// Done returns a channel that is closed when the outcome is decided.
func (l *Live) Done() <-chan struct{} { return l.done }

// Result returns the run's result, or nil before Done. It must not be changed.
func (l *Live) Result() *Result {
	select {
	case <-l.done:
		return l.run.result
	default:
		return nil
	}
}

// Follow returns a Follower of the run's messages: those that the run keeps from a number on, and from now on what
// guests write in bulk, of some types or of all, at a rate that people can follow. Who follows a type that nobody knows
// follows all of these.
func (l *Live) Follow(from int, types ...shm.Type) *Follower {
	h := l.run.history
	h.followers.Add(1)
	f := &Follower{history: h, kept: max(0, from), bulk: map[*followed]seen{}}
	for _, t := range types {
		if !Keeps(t) {
			f.bulk[h.followedOf(t)] = seen{}
		}
	}
	if len(types) == 0 {
		for _, w := range h.followed {
			f.bulk[w] = seen{}
		}
	}
	for w := range f.bulk {
		w.makeRoom(h.since())
		total, missed := w.end()
		f.bulk[w] = seen{total, missed}
	}
	return f
}

// Follower reads a run's messages as they come. It must not be used concurrently.
type Follower struct {
	history *history
	kept    int
	bulk    map[*followed]seen
}

// seen is how much a Follower knows of.
type seen struct{ total, missed uint64 }

// Next returns what came since the last call, in order, and how many messages of those that a run does not keep were
// left out. It returns at most 1024 of those that it keeps; if there are that many, there may be more. It never waits.
func (f *Follower) Next() (ms []Message, omitted uint64) {
	h := f.history
	now := h.since()
	for w := range f.bulk {
		w.makeRoom(now)
	}
	// A message gets its time under a lock that is taken here behind it: up to now, all are there. Those that have come
	// since, and what comes behind messages that are kept but have no room, are for the next call.
	ms = before(h.messages(f.kept, maxMessages), now)
	f.kept += len(ms)
	if len(ms) == maxMessages {
		now = ms[maxMessages-1].At
	}
	for w, last := range f.bulk {
		bulk, next, gone := w.from(last.total, now)
		missed := w.missed.Load()
		omitted += gone + missed - last.missed
		f.bulk[w] = seen{next, missed}
		ms = append(ms, bulk...)
	}
	slices.SortStableFunc(ms, func(a, b Message) int { return cmp.Compare(a.At, b.At) })
	return ms, omitted
}

// Close ends the following.
func (f *Follower) Close() { f.history.followers.Add(-1) }
