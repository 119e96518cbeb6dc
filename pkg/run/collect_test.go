package run_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// message is one that a fake guest sends.
type message struct {
	typ     shm.Type
	payload string
}

func coded(t shm.Type, code int32) message {
	p := shm.EncodeCode(code)
	return message{t, string(p[:])}
}

// sends is a guest that sends messages, each as soon as there is room, and then waits to be stopped, or ends
// where that is said.
func sends(ends bool, messages ...message) func(*shm.Writer, <-chan struct{}) {
	return func(w *shm.Writer, stopped <-chan struct{}) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			defer cancel()
			<-stopped
		}()
		for _, m := range messages {
			if err := w.WriteWait(ctx, m.typ, []byte(m.payload)); err != nil {
				return
			}
		}
		if !ends {
			<-stopped
		}
	}
}

// What a guest says ends its run, or does not, and is in the result.
func TestWhatAGuestSays(t *testing.T) {
	stimulus := shm.StimulusEvent{ElapsedMS: 7, StepIndex: 2, TotalIterations: 1 << 40}
	encoded := stimulus.Encode()
	for name, tc := range map[string]struct {
		messages []message
		ends     bool // by itself
		outcome  run.Outcome
		exit     int
		holds    func(*run.Result) bool
	}{
		"an exit code": {
			messages: []message{coded(shm.Exit, 3)}, outcome: run.Exited, exit: 3,
			holds: func(r *run.Result) bool { return *r.GuestExitCode == 3 },
		},
		"the last of several": {
			messages: []message{coded(shm.Exit, 3), coded(shm.Exit, 4)}, ends: true, outcome: run.Exited, exit: 4,
			holds: func(r *run.Result) bool { return *r.GuestExitCode == 4 && r.Ring.ByType["EXIT"] == 2 },
		},
		"an exit code of three bytes": {
			messages: []message{{shm.Exit, "abc"}}, ends: true, outcome: run.Corrupt, exit: 123,
			holds: func(r *run.Result) bool {
				return len(r.Faults) == 1 && r.Faults[0].Kind == "bad_payload" && strings.Contains(r.Faults[0].Detail, "3 bytes")
			},
		},
		"a scheduler's end": {
			messages: []message{coded(shm.SchedulerExit, 7), coded(shm.SchedulerExit, 8)},
			ends:     true, outcome: run.SchedulerGone, exit: 121,
			holds: func(r *run.Result) bool { return *r.SchedulerExit.Code == 7 },
		},
		"one whose code is lost": {
			messages: []message{{shm.SchedulerExit, ""}}, outcome: run.SchedulerGone, exit: 121,
			holds: func(r *run.Result) bool {
				return r.SchedulerExit.Code == nil && strings.Contains(r.Reason, "without a code")
			},
		},
		"a crash": {
			messages: []message{{shm.Crash, "panic: \xff"}, {shm.Crash, "a later one"}},
			ends:     true, outcome: run.Crashed, exit: 122,
			holds: func(r *run.Result) bool { return *r.Crash == "panic: \ufffd" && !r.Panicked },
		},
		"a step": {
			messages: []message{{shm.Stimulus, string(encoded[:])}, coded(shm.Exit, 0)}, outcome: run.Exited,
			holds: func(r *run.Result) bool { return len(r.Stimuli) == 1 && r.Stimuli[0].StimulusEvent == stimulus },
		},
		"a step that is cut": {
			messages: []message{{shm.Stimulus, string(encoded[:23])}, coded(shm.Exit, 0)}, outcome: run.Exited,
			holds: func(r *run.Result) bool { return len(r.Stimuli) == 0 && r.Ring.Faults["bad_payload"] == 1 },
		},
		"results": {
			messages: []message{{shm.TestResult, `{"passed":true}`}, {shm.TestResult, "\x00"}, coded(shm.Exit, 0)},
			outcome:  run.Exited,
			holds: func(r *run.Result) bool {
				return len(r.TestResults) == 2 && string(r.TestResults[0].Payload) == `{"passed":true}` &&
					string(r.TestResults[1].Payload) == "\x00"
			},
		},
		"a type that nobody knows": {
			messages: []message{{0x12345678, "?"}, coded(shm.Exit, 0)}, outcome: run.Exited,
			holds: func(r *run.Result) bool { return r.Ring.ByType["unknown"] == 1 },
		},
	} {
		r := ended(t, t.Context(), newFake(t, sends(tc.ends, tc.messages...)).config(), tc.outcome)
		if r.ExitCode != tc.exit || !tc.holds(r) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// What a guest can send without end is kept up to a limit, and counted from there.
func TestResultsAreBounded(t *testing.T) {
	step := shm.StimulusEvent{}.Encode()
	result := func(n int) message {
		text, _ := json.Marshal(strings.Repeat("x", n-2))
		return message{shm.TestResult, string(text)}
	}
	for name, tc := range map[string]struct {
		message
		count int
		kept  func(*run.Result) (kept int, omitted uint64)
		want  int // kept
	}{
		"steps": {
			message{shm.Stimulus, string(step[:])}, 1<<16 + 5,
			func(r *run.Result) (int, uint64) { return len(r.Stimuli), r.Omitted.Stimuli }, 1 << 16,
		},
		"results": {
			message{shm.TestResult, "{}"}, 1<<12 + 5,
			func(r *run.Result) (int, uint64) { return len(r.TestResults), r.Omitted.TestResults }, 1 << 12,
		},
		"large results": {
			result(1 << 20), 5,
			func(r *run.Result) (int, uint64) { return len(r.TestResults), r.Omitted.TestResults }, 4,
		},
		"faults": {
			message{shm.Stimulus, "short"}, 64 + 5,
			func(r *run.Result) (int, uint64) { return len(r.Faults), r.Omitted.Faults }, 64,
		},
	} {
		messages := append(slices.Repeat([]message{tc.message}, tc.count), coded(shm.Exit, 0))
		cfg := newFakeOf(t, 2<<20, sends(false, messages...)).config()
		cfg.Poll = time.Millisecond
		r := ended(t, t.Context(), cfg, run.Exited)
		if kept, omitted := tc.kept(r); kept != tc.want || omitted != uint64(tc.count-tc.want) || r.Ring.Drops != 0 {
			t.Errorf("%s: %d kept, %d left out of %d", name, kept, omitted, tc.count)
		}
	}
}

// A crash's text is kept to its first MiB.
func TestLongCrash(t *testing.T) {
	text := strings.Repeat("line\n", 1<<18)
	r := ended(t, t.Context(), newFakeOf(t, 2<<20, sends(false, message{shm.Crash, text})).config(), run.Crashed)
	if *r.Crash != text[:1<<20] || r.Omitted.CrashBytes != uint64(len(text)-1<<20) ||
		!strings.HasSuffix(r.Reason, "crashed: line") {
		t.Errorf("%d bytes, %d left out; %s", len(*r.Crash), r.Omitted.CrashBytes, r.Reason)
	}
}

// Of a console the end is kept, and how much came before it is said.
func TestConsoleIsBounded(t *testing.T) {
	var f *fake
	f = newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
		for i := range 10_000 {
			fmt.Fprintf(f.console, "%09d\n", i)
		}
		sends(false, coded(shm.Exit, 0))(w, stopped)
	})
	var all bytes.Buffer
	cfg := f.config()
	cfg.VM.Console = &all
	r := ended(t, t.Context(), cfg, run.Exited)
	if all.Len() != 100_000 || !bytes.Equal(r.Console, all.Bytes()[100_000-64<<10:]) ||
		r.Omitted.ConsoleBytes != 100_000-64<<10 {
		t.Errorf("%d bytes were written, %d kept, %d left out", all.Len(), len(r.Console), r.Omitted.ConsoleBytes)
	}
}
