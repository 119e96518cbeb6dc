package monitor

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// DefaultPoll is how often the ring is read.
const DefaultPoll = 10 * time.Millisecond

// drainsPerTick bounds one tick: a guest that writes as fast as the host reads gets no more of
// it before the host looks at everything else.
const drainsPerTick = 16

// shortestWait is the shortest sleep that is worth its system calls.
const shortestWait = 50 * time.Microsecond

// emptySpins is how often a loop that does not sleep looks at an empty ring before it does.
const emptySpins = 100

// ringsAhead is how often the bell may ring for a drain before the poll has paid for it: each of its ticks pays
// for one. So a guest that rings without end costs no more than the poll, and one that rings a few times at once
// is heard each time.
const ringsAhead = 16

// Config describes a monitor.
type Config struct {
	Reader *shm.Reader   // used by the monitor alone, from New on
	Mux    *Mux          // passes on the messages
	Poll   time.Duration // 0: DefaultPoll
	// Bell makes the monitor drain at once, unless that would be too often. Nothing relies on it: if it is late, lost
	// or nil, the poll finds the messages.
	Bell <-chan struct{}
	// OnBell, if not nil, is called for each ring of the bell that is heard. It must not block.
	OnBell func()
	// OnFault, if not nil, is called for each fault, on the monitor's goroutine.
	OnFault func(kind string, detail error)
	// OnDrops, if not nil, is called there when the guest's count of drops has changed, with the count.
	OnDrops func(total uint64)
}

// Monitor reads one ring. Start starts its loop, once; Stop ends the loop; Finish reads what is left.
type Monitor struct {
	reader  *shm.Reader
	mux     *Mux
	poll    time.Duration
	bell    <-chan struct{}
	paid    chan struct{} // a value for each drain that the bell may ring for
	onBell  func()
	onFault func(string, error)
	onDrops func(uint64)
	handle  func(shm.Message) bool // m.message, made once

	counters *counters
	types    map[shm.Type]int // index into byType
	perType  []uint64         // the loop's own counts, published once a drain
	rejected uint64
	omitted  uint64 // bytes
	late     bool   // messages that a handler has no room for are omitted
	duration prometheus.Histogram
	lateness prometheus.Histogram
	descs    descs
	ticker   *ticker // from Start on
	verdict  chan error
	syncs    syncs
	quit     chan struct{}
	running  sync.WaitGroup // the monitor's own goroutines
	stopOnce sync.Once
}

// New returns a monitor that is not yet started.
func New(cfg Config) *Monitor {
	m := &Monitor{
		reader:   cfg.Reader,
		mux:      cfg.Mux,
		poll:     cfg.Poll,
		bell:     cfg.Bell,
		onBell:   cfg.OnBell,
		paid:     make(chan struct{}, ringsAhead),
		onFault:  cfg.OnFault,
		onDrops:  cfg.OnDrops,
		counters: newCounters(),
		types:    map[shm.Type]int{},
		descs:    newDescs(),
		verdict:  make(chan error, 1),
		quit:     make(chan struct{}),
	}
	if m.poll <= 0 {
		m.poll = DefaultPoll
	}
	if m.onBell == nil {
		m.onBell = func() {}
	}
	if m.onFault == nil {
		m.onFault = func(string, error) {}
	}
	for i, t := range shm.Types() {
		m.types[t] = i
	}
	m.perType = make([]uint64, len(m.types)+1)
	m.handle = m.message
	m.duration, m.lateness = newHistograms()
	for range ringsAhead {
		m.payForRing()
	}
	return m
}

// Start starts reading. It fails if the host can't provide a timer.
func (m *Monitor) Start() error {
	t, err := newTicker(m.poll)
	if err != nil {
		return err
	}
	m.ticker = t
	m.running.Go(m.loop)
	if m.bell != nil {
		m.running.Go(m.listen)
	}
	return nil
}

// Stop ends the loop of a started monitor and waits for it.
func (m *Monitor) Stop() {
	m.stopOnce.Do(func() {
		close(m.quit)
		m.ticker.poke()
	})
	m.running.Wait()
}

// Verdict returns a channel that receives the first handler's reason to stop.
func (m *Monitor) Verdict() <-chan error { return m.verdict }

// Sync makes a started monitor drain now. The returned channel is closed when what the guest had written before the
// call has been handled, up to a message that a handler has no room for. It is closed at once if the loop has ended.
func (m *Monitor) Sync() <-chan struct{} {
	done := make(chan struct{})
	m.syncs.add(done)
	m.ticker.poke()
	return done
}

// syncs are who waits for the next drain.
type syncs struct {
	mu      sync.Mutex
	waiting []chan struct{}
	ended   bool // there will be none
}

func (s *syncs) add(done chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		close(done)
		return
	}
	s.waiting = append(s.waiting, done)
}

// take returns who waits now; the last time, for whom comes later there is no wait.
func (s *syncs) take(last bool) []chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.waiting
	s.waiting, s.ended = nil, last
	return waiting
}

// listen drains when the bell rings, as often as that is paid for. Meanwhile rings stay with who rings.
func (m *Monitor) listen() {
	for {
		select {
		case <-m.quit:
			return
		case <-m.paid:
		}
		select {
		case <-m.quit:
			return
		case <-m.bell:
		}
		m.onBell()
		<-m.Sync()
		m.counters.bellDrains.Add(1)
	}
}

// payForRing lets the bell ring for one more drain, up to ringsAhead.
func (m *Monitor) payForRing() {
	select {
	case m.paid <- struct{}{}:
	default:
	}
}

// Finish reads what is left in the ring. It must be called when the loop has ended, or was never started, and the guest
// writes no more. A message that a handler has no room for is offered again until ctx ends, and then omitted. Should
// the guest go on all the same, because its machine could not be stopped, what a ring holds is read when ctx has ended,
// and no more.
func (m *Monitor) Finish(ctx context.Context) {
	for left := m.reader.Capacity(); ; {
		d := m.drain()
		if ctx.Err() != nil {
			left -= min(left, d.Bytes)
		}
		switch {
		case left == 0:
			return
		case d.More:
			continue
		case !d.Held:
			return
		}
		select {
		case <-ctx.Done():
			m.late = true
		case <-time.After(m.poll):
		}
	}
}

// Stats returns the counts up to the last drain.
func (m *Monitor) Stats() Stats { return m.counters.snapshot(m.reader.Capacity()) }

func (m *Monitor) loop() {
	defer m.ticker.close()
	defer func() {
		for _, done := range m.syncs.take(true) {
			close(done)
		}
	}()
	last := time.Now()
	p := pace{poll: m.poll, half: float64(m.reader.Capacity()) / 2, wait: m.poll}
	early := uint64(0) // bytes that came between two ticks, for who did not wait for the next
	for wait := m.poll; ; {
		ticked := true
		if wait > 0 {
			if err := m.ticker.arm(wait); err == nil {
				ticked = m.ticker.wait()
			}
		}
		select {
		case <-m.quit:
			return
		default:
		}
		if waiting := m.syncs.take(false); waiting != nil {
			bytes, _ := m.tick()
			early += bytes
			for _, done := range waiting {
				close(done)
			}
		}
		if !ticked {
			continue
		}
		now := time.Now()
		if wait > 0 {
			m.lateness.Observe(now.Sub(m.ticker.due).Seconds())
		}
		bytes, more := m.tick()
		wait = p.next(early+bytes, more, now.Sub(last))
		last, early = now, 0
		m.payForRing()
	}
}

// pace decides how long the loop sleeps between ticks. That is the poll interval; or a half, a
// quarter … of it where the guest writes so fast that it would fill more than half of the ring
// meanwhile; or nothing, where even a short sleep is too long.
type pace struct {
	poll  time.Duration
	half  float64       // bytes, of the ring
	wait  time.Duration // what was decided last
	empty int           // ticks in a row that found nothing, while wait is 0
}

// next decides after a tick: bytes came in the time since the last one, and more of them wait.
func (p *pace) next(bytes uint64, more bool, since time.Duration) time.Duration {
	want := p.poll
	if more {
		want = 0
	}
	for want > 0 && float64(bytes)*float64(want) > p.half*float64(since) {
		if want /= 2; want < shortestWait {
			want = 0
		}
	}
	switch {
	case want <= p.wait:
		p.wait, p.empty = want, 0
	case p.wait > 0: // slow down step by step: a guest that waited for room is about to write
		p.wait = min(want, 2*p.wait)
	case p.empty < emptySpins:
		p.empty++
	default:
		p.wait = min(want, shortestWait)
	}
	return p.wait
}

// tick drains until the ring is empty or the tick's bound is reached.
func (m *Monitor) tick() (bytes uint64, more bool) {
	start := time.Now()
	for range drainsPerTick {
		d := m.drain()
		bytes += d.Bytes
		if more = d.More; !more {
			break
		}
	}
	m.duration.Observe(time.Since(start).Seconds())
	return bytes, more
}

// drain drains once and publishes the statistics.
func (m *Monitor) drain() shm.DrainResult {
	d := m.reader.Drain(m.handle)
	for i := range d.Restored {
		m.fault(d.Restored[i])
	}
	m.fault(d.Fault)
	s, c := m.reader.Stats(), m.counters
	c.messages.Store(s.Messages)
	c.bytes.Store(s.Bytes)
	if c.drops.Swap(s.Drops) != s.Drops && m.onDrops != nil {
		m.onDrops(s.Drops)
	}
	c.crcErrors.Store(s.CRCErrors)
	c.lost.Store(s.Lost)
	c.omitted.Store(m.omitted)
	c.used.Store(d.Unread)
	for i, n := range m.perType {
		c.byType[i].Store(n)
	}
	for i, k := range faultKinds {
		c.faults[i].Store(s.Faults[k])
	}
	c.faults[len(faultKinds)].Store(m.rejected)
	return d
}

func (m *Monitor) fault(f shm.Fault) {
	if f.Kind != shm.NoFault {
		found := f // here, so that f stays off the heap where nothing broke
		m.onFault(f.Kind.String(), &found)
	}
}

// faultKinds is shm.FaultKinds, made once for drain.
var faultKinds = shm.FaultKinds()

// message gives one message to its handlers and counts it, and reports whether it was taken.
func (m *Monitor) message(msg shm.Message) bool {
	v := m.mux.dispatch(msg, m.late)
	if v.notNow {
		if !m.late {
			return false
		}
		m.omitted += uint64(len(msg.Payload))
	}
	i, known := m.types[msg.Type]
	if !known {
		i = len(m.types)
	}
	m.perType[i]++
	if v.reject != nil {
		m.rejected++
		m.onFault(BadPayload, v.reject)
	}
	if v.stop != nil {
		select {
		case m.verdict <- v.stop:
		default: // there is a verdict already
		}
	}
	return true
}
