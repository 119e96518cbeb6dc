package run

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Phase is how far a run is.
type Phase string

// The phases, in their order. A run may leave some out: the embedded guest has no agent.
const (
	PhaseBoot      Phase = "boot"      // from the guest's start
	PhaseAgent     Phase = "agent"     // from the time that the host first heard of the agent
	PhaseScheduler Phase = "scheduler" // from the first word of the scheduler under test
	PhaseCommand   Phase = "command"   // from SCST
	PhaseEnd       Phase = "end"       // from SCEN, or from when the guest was asked to stop
)

var phases = []Phase{PhaseBoot, PhaseAgent, PhaseScheduler, PhaseCommand, PhaseEnd}

// PhaseStart is when a phase began.
type PhaseStart struct {
	Phase Phase
	At    time.Duration // since StartedAt
}

// Event is something that happened to a run, beside the guest's stimuli and results.
type Event struct {
	At   time.Duration // since StartedAt
	Kind string        // a message's type, or what the host found or did
	Text string        // a part of a sentence; it may have a guest's words
}

// The kinds of events that are no messages.
const (
	EventFault    = "fault"
	EventDrops    = "drops"
	EventDump     = "dump_request"
	EventStall    = "stall_request"
	EventSignal   = "signal"
	EventStop     = "stop"
	EventDeadline = "deadline"
)

// Message is a message of a run, for those who look at it while it goes on.
type Message struct {
	N       int           // its number among those that the run keeps, from 0; -1: the run does not keep it
	At      time.Duration // when the host read it, since StartedAt
	Type    shm.Type
	CRCOK   bool
	Size    int    // bytes of the payload
	Payload []byte // the first ones of them, up to 512
}

// What a history keeps at most.
const (
	maxKeptPayload  = 512                    // bytes of a message's payload
	maxKeptOther    = 1 << 12                // messages of a type
	maxEvents       = 1 << 10                // of a kind
	dropsTogether   = 100 * time.Millisecond // drops within that time are one event
	payloadChunk    = 64 << 10               // bytes
	maxFollowed     = 1 << 11                // messages of a type that wait for followers
	maxFollowedRate = 1 << 10                // of them that are let in during a followWindow
	followWindow    = 50 * time.Millisecond
)

// history is what a run keeps of its messages and of what the host did, with times. It only grows, up to limits:
// a reader that knows how much it has seen misses nothing, however slow it is. What guests write in bulk is not
// kept, and there only while somebody follows it.
//
// The monitor's goroutine adds messages, any goroutine reads.
type history struct {
	since func() time.Duration

	mu      sync.Mutex
	kept    []Message
	data    []byte // the rest of a chunk for payloads
	counts  map[shm.Type]int
	omitted uint64
	phases  []PhaseStart

	stimulus   Stimulus // the last one
	stimulated bool     // there is one

	events        []Event
	eventsOf      map[string]int // how many of a kind there are
	omittedEvents uint64

	followers atomic.Int32
	followed  map[shm.Type]*followed // of each type that is not kept, so that none takes another's room
}

// unknown stands for all types that nobody knows.
const unknown shm.Type = 0

func newHistory(since func() time.Duration) *history {
	h := &history{since: since, counts: map[shm.Type]int{}, eventsOf: map[string]int{},
		followed: map[shm.Type]*followed{unknown: {}}}
	for _, t := range shm.Types() {
		if !Keeps(t) {
			h.followed[t] = &followed{}
		}
	}
	return h
}

// followedOf returns the window of a type that is not kept.
func (h *history) followedOf(t shm.Type) *followed {
	if f := h.followed[t]; f != nil {
		return f
	}
	return h.followed[unknown]
}

// roomFor returns how many messages of a type are kept; 0 for what commands and schedulers write in bulk, and for types
// that nobody knows.
func roomFor(t shm.Type) int {
	switch t {
	case shm.Stimulus:
		return maxStimuli
	case shm.TestResult:
		return maxTestResults
	case shm.ScenarioStart, shm.ScenarioEnd, shm.Exit, shm.SchedulerExit, shm.Crash, shm.SchedulerChange:
		return maxKeptOther
	}
	return 0
}

// message implements monitor.HandlerFunc.
func (h *history) message(m shm.Message) monitor.Verdict {
	limit := roomFor(m.Type)
	if limit == 0 {
		if h.followers.Load() > 0 {
			h.followedOf(m.Type).add(h.since, m)
		}
		return monitor.Continue
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.since() // under the lock, so that all are in order
	if m.CRCOK {
		h.enterFor(m.Type, at)
	}
	if m.CRCOK && m.Type == shm.Stimulus && len(m.Payload) >= shm.StimulusSize {
		if s, err := shm.DecodeStimulus(m.Payload); err == nil {
			h.stimulus, h.stimulated = Stimulus{at, s}, true
		}
	}
	if h.counts[m.Type] == limit {
		h.omitted++
		if isEvent(m.Type) {
			h.omittedEvents++
		}
		return monitor.Continue
	}
	h.counts[m.Type]++
	h.kept = append(h.kept, Message{len(h.kept), at, m.Type, m.CRCOK, len(m.Payload), h.copy(m.Payload)})
	return monitor.Continue
}

// isEvent reports whether messages of a type that is kept are a report's events.
func isEvent(t shm.Type) bool { return t != shm.Stimulus && t != shm.TestResult }

// copy keeps the first bytes of a payload.
func (h *history) copy(payload []byte) []byte {
	payload = payload[:min(len(payload), maxKeptPayload)]
	if len(h.data) < len(payload) {
		h.data = make([]byte, payloadChunk)
	}
	n := copy(h.data, payload)
	kept := h.data[:n:n]
	h.data = h.data[n:]
	return kept
}

// enterFor enters the phase that begins with a message of a type.
func (h *history) enterFor(t shm.Type, at time.Duration) {
	switch t {
	case shm.SchedulerChange:
		h.enterLocked(PhaseScheduler, at)
	case shm.ScenarioStart:
		h.enterLocked(PhaseCommand, at)
	case shm.ScenarioEnd, shm.Exit, shm.SchedulerExit, shm.Crash:
		h.enterLocked(PhaseEnd, at)
	}
}

// enter enters a phase, unless the run is in it or behind it.
func (h *history) enter(p Phase) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.enterLocked(p, h.since())
}

func (h *history) enterLocked(p Phase, at time.Duration) {
	if n := len(h.phases); n > 0 && order(p) <= order(h.phases[n-1].Phase) {
		return
	}
	h.phases = append(h.phases, PhaseStart{p, at})
}

func order(p Phase) int { return slices.Index(phases, p) }

// event notes what the host found or did.
func (h *history) event(kind, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eventLocked(kind, text)
}

// eventLocked adds an event, where there is room for one more of its kind: none takes another's, for guests make some
// of them at will.
func (h *history) eventLocked(kind, text string) {
	if h.eventsOf[kind] == maxEvents {
		h.omittedEvents++
		return
	}
	h.eventsOf[kind]++
	h.events = append(h.events, Event{h.since(), kind, text})
}

// drops notes that the guest counts drops, with their number.
func (h *history) drops(total uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := fmt.Sprintf("the guest has dropped %d messages", total)
	if n := len(h.events); n > 0 {
		if e := &h.events[n-1]; e.Kind == EventDrops && h.since()-e.At < dropsTogether {
			e.Text = text
			return
		}
	}
	h.eventLocked(EventDrops, text)
}

// messages returns at most n of the kept messages, from one on.
func (h *history) messages(from, n int) []Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	from = max(0, min(from, len(h.kept)))
	return append([]Message(nil), h.kept[from:min(from+n, len(h.kept))]...)
}

// before returns the messages up to a time, of some in order.
func before(ms []Message, until time.Duration) []Message {
	n := sort.Search(len(ms), func(i int) bool { return ms[i].At > until })
	return ms[:n]
}

// fill puts what a report needs of the history into a result.
func (h *history) fill(r *Result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Phases = append(r.Phases, h.phases...)
	next := 0
	for _, m := range h.kept { // both lists are in order
		if !isEvent(m.Type) {
			continue
		}
		for next < len(h.events) && h.events[next].At <= m.At {
			r.Events = append(r.Events, h.events[next])
			next++
		}
		r.Events = append(r.Events, Event{m.At, m.Type.String(), eventText(m)})
	}
	r.Events = append(r.Events, h.events[next:]...)
	r.Omitted.Events = h.omittedEvents
}

// eventText says what a message is about that a report has as an event.
func eventText(m Message) string {
	if !m.CRCOK {
		return "its CRC is wrong"
	}
	switch m.Type {
	case shm.Exit, shm.SchedulerExit:
		if code, err := shm.DecodeCode(m.Payload); err == nil {
			return fmt.Sprintf("code %d", code)
		}
	case shm.SchedulerChange:
		if s, err := shm.DecodeSchedulerState(m.Payload); err == nil {
			return s.Phase.String()
		}
	case shm.Crash:
		return shm.CrashText(m.Payload)
	}
	return ""
}

// followed is a window of the messages of a type that nobody keeps, there while somebody follows them. So that a flood
// is not slowed down by who follows it, no more than a rate is let in: followers make room again, once in a
// followWindow.
type followed struct {
	room   atomic.Int32
	missed atomic.Uint64 // messages that were not let in

	mu    sync.Mutex
	ring  []Message     // maxFollowed of them
	total uint64        // ever let in
	roomy time.Duration // when room was made
}

func (f *followed) add(since func() time.Duration, m shm.Message) {
	if f.room.Load() <= 0 {
		f.missed.Add(1)
		return
	}
	f.room.Add(-1)
	payload := append([]byte(nil), m.Payload[:min(len(m.Payload), maxKeptPayload)]...)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ring == nil {
		f.ring = make([]Message, maxFollowed)
	}
	f.ring[f.total%maxFollowed] = Message{-1, since(), m.Type, m.CRCOK, len(m.Payload), payload}
	f.total++
}

// makeRoom lets more messages in, if it is time.
func (f *followed) makeRoom(now time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.roomy == 0 || now-f.roomy >= followWindow {
		f.roomy = now
		f.room.Store(maxFollowedRate)
	}
}

// end is the number of messages that were let in, and of those that were not.
func (f *followed) end() (total, missed uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total, f.missed.Load()
}

// from returns the messages behind the first n that were let in, up to a time, and how many of them are gone.
func (f *followed) from(n uint64, until time.Duration) (ms []Message, next, gone uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.total-n > maxFollowed {
		gone = f.total - maxFollowed - n
		n += gone
	}
	for ; n < f.total && f.ring[n%maxFollowed].At <= until; n++ {
		ms = append(ms, f.ring[n%maxFollowed])
	}
	return ms, n, gone
}
