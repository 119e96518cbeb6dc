package report

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// What Live shows at most: people read lines, not floods.
const (
	linesPerWindow = 16
	window         = 100 * time.Millisecond
	maxPending     = 1 << 20 // bytes that a slow reader may be behind
	maxPayload     = 160     // bytes of a payload that a line shows
)

// Live shows messages as they come, one per line: time, type, description. If there are more than people can read, it
// counts them by type instead. It never blocks its caller.
type Live struct {
	out *Stream

	mu     sync.Mutex
	lines  int            // in this window
	begun  time.Duration  // when it began
	held   map[string]int // messages that got no line
	flush  *time.Timer    // shows held when no message comes that would
	closed bool
}

// NewLive returns a Live that writes to out. Close ends it, but does not close out.
func NewLive(out *Stream) *Live {
	return &Live{out: out, held: map[string]int{}}
}

// Message shows a message that was read at the given time since the run's start.
func (l *Live) Message(at time.Duration, m shm.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at-l.begun >= window {
		l.begun, l.lines = at, 0
	}
	if !l.shows(m) {
		l.hold(m.Type)
		return
	}
	l.flushHeld()
	l.lines++
	_, _ = io.WriteString(l.out, Line(at, m)) // a Stream takes all
}

// Line is a message that was read at a time since the run's start, in a line.
func Line(at time.Duration, m shm.Message) string {
	text := Describe(m)
	if !m.CRCOK {
		text += "  (CRC is wrong)"
	}
	return fmt.Sprintf("%9.3fs  %s\n", at.Seconds(), strings.TrimRight(fmt.Sprintf("%-4v  %s", m.Type, text), " "))
}

// shows reports whether a message gets a line: what ends a run does, though there are many.
func (l *Live) shows(m shm.Message) bool {
	lines := linesPerWindow
	switch m.Type {
	case shm.Exit, shm.SchedulerExit, shm.Crash:
		lines += linesPerWindow / 2
	}
	return l.lines < lines && l.out.Pending() < maxPending
}

// hold counts a message instead of showing it.
func (l *Live) hold(t shm.Type) {
	if len(l.held) == 0 && !l.closed {
		l.flush = time.AfterFunc(window, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if !l.closed {
				l.flushHeld()
			}
		})
	}
	name := "others"
	if t.Known() {
		name = t.String()
	}
	l.held[name]++
}

// Close shows what was held back and ends the Live.
func (l *Live) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushHeld()
	l.closed = true
}

func (l *Live) flushHeld() {
	if len(l.held) == 0 {
		return
	}
	l.flush.Stop()
	_, _ = io.WriteString(l.out, MoreLine(counts(l.held)))
	clear(l.held)
}

// MoreLine is a line that says of which messages there is none.
func MoreLine(counts string) string { return fmt.Sprintf("%10s  and %s more\n", "", counts) }

// Describe describes a message's payload in one line of printable text.
func Describe(m shm.Message) string {
	switch m.Type {
	case shm.Stimulus:
		if s, err := shm.DecodeStimulus(m.Payload); err == nil {
			return fmt.Sprintf("step %d at %d ms: %d ops (kinds 0x%x), %d cgroups, %d workers, %d iterations",
				s.StepIndex, s.ElapsedMS, s.OpCount, s.OpKinds, s.CgroupCount, s.WorkerCount, s.TotalIterations)
		}
	case shm.Exit, shm.SchedulerExit:
		if code, err := shm.DecodeCode(m.Payload); err == nil {
			return fmt.Sprintf("code %d", code)
		}
	case shm.SchedulerChange:
		if s, err := shm.DecodeSchedulerState(m.Payload); err == nil {
			return oneLine([]byte(describeState(s)))
		}
	case shm.SchedulerDump:
		if d, err := shm.DecodeDumpPiece(m.Payload); err == nil {
			return fmt.Sprintf("dump %d: %s", d.Number, oneLine(d.Text))
		}
	case shm.SchedulerOutput:
		if o, err := shm.DecodeOutputPiece(m.Payload); err == nil {
			return oneLine(o.Text)
		}
	case shm.Crash, shm.TestResult, shm.PayloadMetrics, shm.RawOutput:
		if utf8.Valid(m.Payload) {
			return oneLine(m.Payload)
		}
	}
	if len(m.Payload) == 0 {
		return ""
	}
	return fmt.Sprintf("%d bytes: %x", len(m.Payload), m.Payload[:min(len(m.Payload), 16)])
}

// oneLine is the beginning of a guest's text, without what a terminal would act on.
func oneLine(p []byte) string {
	text := Printable(string(p[:min(len(p), maxPayload)]))
	if len(p) > maxPayload {
		text += fmt.Sprintf("… (%d bytes)", len(p))
	}
	return text
}
