package run

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Stall says when a scenario has stalled: between SCST and SCEN, what should come does not.
type Stall struct {
	Polls int     // so many polls in a row without a STIM; 0: any number
	Rate  float64 // fewer messages a second, beside what the agent says of the scheduler; 0: any number
}

// rateWindow is how long messages are counted for a rate.
const rateWindow = time.Second

// activity counts what shows that a scenario goes on. The monitor's goroutine counts, the run's reads.
type activity struct {
	running           atomic.Bool // between SCST and SCEN
	stimuli, messages atomic.Uint64
}

func (a *activity) register(x *monitor.Mux) {
	for _, t := range shm.Types() {
		switch t {
		case shm.SchedulerChange, shm.SchedulerDump, shm.SchedulerOutput:
			continue
		}
		x.HandleFunc(t, a.count)
	}
}

func (a *activity) count(m shm.Message) monitor.Verdict {
	switch m.Type {
	case shm.ScenarioStart:
		a.running.Store(true)
	case shm.ScenarioEnd:
		a.running.Store(false)
	case shm.Stimulus:
		a.stimuli.Add(1)
	}
	a.messages.Add(1)
	return monitor.Continue
}

// stallWatch finds stalls. Each is told once: the next one begins when what was missing has come.
type stallWatch struct {
	Stall
	seen *activity

	running  bool
	stimuli  uint64
	polls    int // in a row without a STIM
	begun    time.Time
	messages uint64 // when the window began
	slow     bool   // the last window was below the rate
}

// poll looks once a poll, and returns why there is a stall that was not told yet, or "".
func (w *stallWatch) poll(now time.Time) (why string) {
	running, stimuli, messages := w.seen.running.Load(), w.seen.stimuli.Load(), w.seen.messages.Load()
	if !running || !w.running {
		w.running, w.stimuli, w.polls = running, stimuli, 0
		w.begun, w.messages, w.slow = now, messages, false
		return ""
	}
	if stimuli != w.stimuli {
		w.stimuli, w.polls = stimuli, 0
	} else if w.polls++; w.Polls > 0 && w.polls == w.Polls {
		why = fmt.Sprintf("no STIM came in %d polls", w.Polls)
	}
	if took := now.Sub(w.begun); took >= rateWindow {
		rate := float64(messages-w.messages) / took.Seconds()
		if slow := rate < w.Rate; slow && !w.slow && why == "" {
			why = fmt.Sprintf("%.3g messages a second came, fewer than %.3g", rate, w.Rate)
		}
		w.begun, w.messages, w.slow = now, messages, rate < w.Rate
	}
	return why
}

// ticks returns a channel that receives once a poll, or nil if no stall is looked for, and a function that ends it.
func (w *stallWatch) ticks(poll time.Duration) (<-chan time.Time, func()) {
	if w.Stall == (Stall{}) {
		return nil, func() {}
	}
	if poll <= 0 {
		poll = monitor.DefaultPoll
	}
	t := time.NewTicker(poll)
	return t.C, t.Stop
}
