package run

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// clock is a history's, which goes on by a step for each look.
type clock struct{ now time.Duration }

func (c *clock) since() time.Duration {
	c.now++
	return c.now
}

// A tail keeps the last bytes, whatever is written to it in what pieces.
func TestTailKeeps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		kept := tail{limit: limit}
		var all []byte
		for _, p := range rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 60)).Draw(t, "written") {
			if n, err := kept.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			all = append(all, p...)
			begin := max(0, len(all)-limit)
			if got, omitted := kept.bytes(); !bytes.Equal(got, all[begin:]) || omitted != uint64(begin) {
				t.Fatalf("%q behind %d, want %q", got, omitted, all[begin:])
			}
			from := rapid.IntRange(0, len(all)+5).Draw(t, "from")
			want := min(max(from, begin), len(all))
			if got, at := kept.from(uint64(from)); !bytes.Equal(got, all[want:]) || at != uint64(want) {
				t.Fatalf("from %d: %q at %d, want %q at %d", from, got, at, all[want:], want)
			}
			if kept.written() != uint64(len(all)) {
				t.Fatal(kept.written())
			}
		}
	})
}

// A console's times belong to the first bytes of lines that are kept, and are those at which these were written.
func TestConsoleTimes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var now time.Duration
		limit := rapid.IntRange(1, 30).Draw(t, "limit")
		console := consoleTail{tail: tail{limit: limit}, since: func() time.Duration { return now }}
		var all []byte
		var came []time.Duration // of each byte
		for range rapid.IntRange(0, 20).Draw(t, "writes") {
			now += time.Duration(rapid.IntRange(0, 25).Draw(t, "pause")) * time.Millisecond
			p := []byte(rapid.StringMatching(`([ab]|\n){0,40}`).Draw(t, "written"))
			_, _ = console.Write(p)
			all = append(all, p...)
			for range p {
				came = append(came, now)
			}
		}
		var want []LineTime
		begin, line, last := max(0, len(all)-limit), 0, -time.Hour
		for i := range all {
			first := i == 0 || all[i-1] == '\n'
			if i > begin && first {
				line++
			}
			if first && came[i]-last >= lineTimeStep {
				if last = came[i]; i >= begin {
					want = append(want, LineTime{line, last})
				}
			}
		}
		if got := console.lineTimes(); !slices.Equal(got, want) {
			t.Fatalf("%q behind %d has %v, want %v", all[begin:], begin, got, want)
		}
	})
}

// However many lines a console has, its times are bounded, and the last ones are there.
func TestConsoleTimesAreBounded(t *testing.T) {
	var now time.Duration
	console := consoleTail{tail: tail{limit: maxConsoleBytes}, since: func() time.Duration { return now }}
	const lines = 3 * maxLineTimes
	for range lines {
		now += time.Second
		_, _ = console.Write([]byte("\n"))
	}
	times, last := console.lineTimes(), LineTime{lines - 1, lines * time.Second}
	if n := len(times); n > maxLineTimes || n < maxLineTimes/2 || times[n-1] != last {
		t.Errorf("%d times, the last is %v", n, times[n-1])
	}
}

// A follower gets all that is kept, in order, and knows exactly how much else it did not get. What it gets is in the
// order in which it came, also from one call to the next.
func TestFollowerIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c clock
		h := newHistory(c.since)
		l := &Live{run: &run{history: h}}
		f := l.Follow(rapid.IntRange(-9, 0).Draw(t, "from"))
		defer f.Close()
		kept, bulk, sent := 0, uint64(0), [2]int{}
		var last time.Duration
		next := func() int {
			ms, omitted := f.Next()
			bulk += omitted
			for _, m := range ms {
				if m.At < last {
					t.Fatalf("a message of %v comes behind one of %v", m.At, last)
				}
				last = m.At
				if m.N < 0 {
					bulk++
				} else if m.N != kept {
					t.Fatalf("message %d comes behind %d", m.N, kept-1)
				} else {
					kept++
				}
			}
			return len(ms)
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			step := time.Duration(rapid.IntRange(0, 200).Draw(t, "microseconds")) * time.Microsecond
			every := rapid.IntRange(1, 9).Draw(t, "every")
			for n := range rapid.IntRange(0, 4000).Draw(t, "messages") {
				i := min(n%every, 1)
				h.message(shm.Message{Type: []shm.Type{shm.Stimulus, shm.RawOutput}[i], CRCOK: true})
				sent[i]++
				c.now += step
			}
			if rapid.Bool().Draw(t, "pause") {
				c.now += followWindow
			}
			if rapid.Bool().Draw(t, "looks") {
				next()
			}
		}
		for next() > 0 {
		}
		if kept != sent[0] || bulk != uint64(sent[1]) {
			t.Fatalf("%d and %d of %v", kept, bulk, sent)
		}
	})
}

// A message that comes while a follower looks is not handed out before one that came earlier.
func TestFollowerOrderWhileMessagesCome(t *testing.T) {
	start := time.Now()
	h := newHistory(func() time.Duration { return time.Since(start) })
	f := (&Live{run: &run{history: h}}).Follow(0)
	defer f.Close()
	var sender sync.WaitGroup
	done := make(chan struct{})
	sender.Go(func() {
		defer close(done)
		for i := range 40000 {
			h.message(shm.Message{Type: []shm.Type{shm.Stimulus, shm.RawOutput}[i&1], CRCOK: true})
		}
	})
	var last time.Duration
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		ms, _ := f.Next()
		for _, m := range ms {
			if m.At < last {
				t.Fatalf("a message of %v comes behind one of %v", m.At, last)
			}
			last = m.At
		}
	}
	sender.Wait()
}

// What a guest makes a history of takes a bounded room, and leaves some for what the host did.
func TestHistoryIsBounded(t *testing.T) {
	var c clock
	h := newHistory(c.since)
	collects := collector{r: &Result{}, history: h, since: c.since}
	const flood = 2 * maxKeptOther
	huge := bytes.Repeat([]byte{0xff}, 1<<20)
	for i := range flood {
		h.message(shm.Message{Type: shm.ScenarioStart, CRCOK: true})
		h.message(shm.Message{Type: shm.ScenarioEnd, CRCOK: i%2 == 0, Payload: huge})
		h.message(shm.Message{Type: 1, Payload: huge})
		h.drops(uint64(i))
		c.now += dropsTogether
		collects.fault("kind", fmt.Errorf("fault %d", i))
	}
	h.event(EventStop, "SIGTERM")
	var r Result
	h.fill(&r)
	if last := r.Events[len(r.Events)-1]; last.Kind != EventStop {
		t.Errorf("the last event is %+v", last)
	}
	if want := uint64(2*(flood-maxKeptOther) + flood - maxEvents); r.Omitted.Events != want {
		t.Errorf("%d events are omitted, want %d", r.Omitted.Events, want)
	}
	if len(r.Events) != 2*maxKeptOther+maxEvents+maxFaults+1 || len(r.Phases) != 2 {
		t.Errorf("%d events, phases %v", len(r.Events), r.Phases)
	}
	if !slices.IsSortedFunc(r.Events, func(a, b Event) int { return int(a.At - b.At) }) {
		t.Error("events are not in order")
	}
	size := 0
	for _, m := range h.messages(0, len(h.kept)) {
		size += cap(m.Payload)
	}
	if size != maxKeptOther*maxKeptPayload || len(h.followedOf(1).ring) != 0 {
		t.Errorf("%d bytes of payloads, %d messages for nobody", size, len(h.followedOf(1).ring))
	}
}
