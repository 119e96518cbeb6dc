package run_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

func state(s shm.SchedulerState) message { return message{shm.SchedulerChange, string(s.Encode())} }

func wrote(text string) message {
	return message{shm.SchedulerOutput, string(shm.OutputPiece{Stream: shm.OutputStderr, Text: []byte(text)}.Encode())}
}

func dumped(d shm.DumpPiece) message { return message{shm.SchedulerDump, string(d.Encode())} }

// What the guest says of its scheduler is in the result, and why it is gone in the reason.
func TestWhatAGuestSaysOfItsScheduler(t *testing.T) {
	const why = "was disabled by the kernel (runnable task stall): zz[56]\nfailed to run for 2.918s"
	f := newFakeOf(t, 1<<20, sends(false,
		state(shm.SchedulerState{Phase: shm.SchedulerLoading, PID: 5}), wrote("hello\n"),
		state(shm.SchedulerState{Phase: shm.SchedulerEnabled, Ops: "fifo", EnableSeq: 1, PID: 5}), wrote("bye\n"),
		dumped(shm.DumpPiece{Number: 1, Text: []byte("Debug dump\n")}),
		dumped(shm.DumpPiece{Number: 2, Text: []byte("stall\n"), Omitted: 3}),
		state(shm.SchedulerState{Phase: shm.SchedulerLost, Reason: "an earlier one", Noticed: time.Second, PID: 5}),
		state(shm.SchedulerState{Phase: shm.SchedulerLost, Reason: why, EnableSeq: 1, PID: 5}),
		coded(shm.SchedulerExit, -1)))
	r := run.Run(t.Context(), f.config())
	if r.Outcome != run.SchedulerGone || r.ExitCode != 121 || *r.SchedulerExit.Code != -1 ||
		r.Reason != "the scheduler under test "+strings.ReplaceAll(why, "\n", " ") {
		t.Errorf("%v, %d, %q", r.Outcome, r.ExitCode, r.Reason)
	}
	s := r.Scheduler
	if s == nil || len(s.States) != 4 || s.States[1].Ops != "fifo" || s.States[2].Noticed != time.Second ||
		string(s.Output) != "hello\nbye\n" || string(s.Dump) != "Debug dump\nstall\n" ||
		s.Omitted != (run.SchedulerOmitted{DumpBytes: 3}) {
		t.Errorf("%+v", s)
	}
}

// The reason alone will do, where the machine ends before the code comes.
func TestSchedulerGoneWithoutCode(t *testing.T) {
	lost := shm.SchedulerState{Phase: shm.SchedulerRefused, Reason: "was refused"}
	r := run.Run(t.Context(), newFake(t, sends(true, state(lost))).config())
	if r.Outcome != run.SchedulerGone || r.SchedulerExit.Code != nil ||
		r.Reason != "the scheduler under test was refused" {
		t.Errorf("%v, %q, %+v", r.Outcome, r.Reason, r.SchedulerExit)
	}
}

// A scheduler that goes when it is asked to has no part in the outcome.
func TestSchedulerThatLeft(t *testing.T) {
	left := shm.SchedulerState{Phase: shm.SchedulerLeft, Reason: "ignored a TERM"}
	f := newFake(t, sends(false, state(left), coded(shm.Exit, 3)))
	if r := run.Run(t.Context(), f.config()); r.Outcome != run.Exited || r.ExitCode != 3 || r.SchedulerExit != nil {
		t.Errorf("%v, %d, %+v", r.Outcome, r.ExitCode, r.SchedulerExit)
	}
}

// What says nothing that can be is counted as such, and ends no run.
func TestBadSchedulerMessages(t *testing.T) {
	f := newFake(t, sends(false, message{shm.SchedulerChange, "x"}, message{shm.SchedulerDump, ""},
		message{shm.SchedulerOutput, "\x07"}, coded(shm.Exit, 0)))
	r := run.Run(t.Context(), f.config())
	if r.Outcome != run.Exited || r.ExitCode != 0 || r.Scheduler != nil || r.Ring.Faults["bad_payload"] != 3 {
		t.Errorf("%v, %d, %+v, %v", r.Outcome, r.ExitCode, r.Scheduler, r.Ring.Faults)
	}
}

// A guest that says more than is kept: the first states and the last one stay, and the ends of output and dump.
func TestMuchOfAScheduler(t *testing.T) {
	var messages []message
	for i := range 100 {
		messages = append(messages, state(shm.SchedulerState{Phase: shm.SchedulerEnabled, EnableSeq: uint64(i)}))
	}
	for range 10 {
		messages = append(messages, wrote(strings.Repeat("x", 10<<10)))
	}
	for i := range 10 {
		messages = append(messages, dumped(shm.DumpPiece{Number: 1, Text: bytes.Repeat([]byte{byte('0' + i)}, 32<<10)}))
	}
	f := newFakeOf(t, 1<<20, sends(false, append(messages, coded(shm.Exit, 0))...))
	s := run.Run(t.Context(), f.config()).Scheduler
	want := run.SchedulerOmitted{States: 36, OutputBytes: 100<<10 - 64<<10, DumpBytes: 320<<10 - 256<<10}
	if len(s.States) != 64 || s.States[62].EnableSeq != 62 || s.States[63].EnableSeq != 99 || s.Omitted != want ||
		len(s.Output) != 64<<10 || len(s.Dump) != 256<<10 || s.Dump[0] != '2' {
		t.Errorf("%d states, %d, %d, %+v", len(s.States), len(s.Output), len(s.Dump), s.Omitted)
	}
}

// awaitDump reports whether the host asks for a dump within a time.
func awaitDump(f *fake, most time.Duration) bool {
	control, err := shm.NewControl(f.ring)
	for end := time.Now().Add(most); err == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if control.TakeDump() {
			return true
		}
	}
	return false
}

// Each stall has one dump, and only a scenario can stall.
func TestDumpAtAStall(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		stall run.Stall
		why   string
		goes  message // what shows that the scenario goes on
		times int     // so often within a second
	}{
		"polls": {run.Stall{Polls: 50}, "no STIM came in 50 polls", stimulusMessage(), 1},
		"rate":  {run.Stall{Rate: 5}, " messages a second came, fewer than 5", message{shm.PayloadMetrics, "{}"}, 50},
	} {
		t.Run(name, func(t *testing.T) {
			var f *fake
			f = newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
				send := func(m message) {
					if err := w.WriteWait(context.Background(), m.typ, []byte(m.payload)); err != nil {
						t.Error(err)
					}
				}
				if awaitDump(f, 100*time.Millisecond) {
					t.Error("a dump was asked for before the scenario")
				}
				send(message{shm.ScenarioStart, ""})
				for range 2 {
					for range tc.times {
						send(tc.goes)
						time.Sleep(20 * time.Millisecond)
					}
					if !awaitDump(f, time.Minute) {
						t.Error("no dump was asked for")
					}
					if awaitDump(f, 200*time.Millisecond) {
						t.Error("a second dump was asked for")
					}
				}
				send(message{shm.ScenarioEnd, ""})
				send(coded(shm.Exit, 0))
				<-stopped
			})
			cfg := f.config()
			cfg.Poll, cfg.Dumps.Stall = time.Millisecond, tc.stall
			r := run.Run(t.Context(), cfg)
			if r.Outcome != run.Exited || len(r.DumpRequests) != 2 || !strings.Contains(r.DumpRequests[1].Why, tc.why) {
				t.Errorf("%v, %+v", r.Outcome, r.DumpRequests)
			}
		})
	}
}

func stimulusMessage() message {
	p := shm.StimulusEvent{}.Encode()
	return message{shm.Stimulus, string(p[:])}
}

// At the soft deadline the dump is asked for before the guest is asked to stop, where it is wanted.
func TestDumpAtSoftDeadline(t *testing.T) {
	t.Parallel()
	for _, wanted := range []bool{true, false} {
		t.Run(fmt.Sprint(wanted), func(t *testing.T) {
			var f *fake
			asked := false
			f = newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
				obeys(t, &f)(w, stopped)
				asked = awaitDump(f, time.Millisecond)
			})
			cfg := f.config()
			cfg.Timeout, cfg.Grace, cfg.Dumps.AtSoftDeadline = 2*time.Second, time.Second, wanted
			r := run.Run(t.Context(), cfg)
			if r.Outcome != run.TimedOut || asked != wanted || len(r.DumpRequests) == 1 != wanted {
				t.Errorf("%v, %v, %+v", r.Outcome, asked, r.DumpRequests)
			}
		})
	}
}
