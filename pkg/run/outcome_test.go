package run_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

func code(c int32) *int32 { return &c }

func TestDecide(t *testing.T) {
	gone := &run.SchedulerExit{Code: code(7)}
	crash := "[    1.234567][    T1] Kernel panic - not syncing: boom\nCall Trace:"
	for _, tc := range []struct {
		name     string
		evidence run.Evidence
		outcome  run.Outcome
		exit     int
		reason   string // a part of it
	}{
		{"nothing", run.Evidence{}, run.NoVerdict, 120, "no EXIT"},
		{"reset", run.Evidence{GuestEnd: vm.ErrReset}, run.NoVerdict, 120, "reset"},
		{"exit 0", run.Evidence{GuestExit: code(0), GuestEnd: vm.ErrReset}, run.Exited, 0, "code 0"},
		{"exit 3", run.Evidence{GuestExit: code(3)}, run.Exited, 3, "code 3"},
		{"exit 255", run.Evidence{GuestExit: code(255)}, run.Exited, 255, "code 255"},
		{"exit 256 is no success", run.Evidence{GuestExit: code(256)}, run.Exited, 255, "code 256"},
		{"exit -1", run.Evidence{GuestExit: code(-1)}, run.Exited, 255, "code -1"},
		{"exit with faults before", run.Evidence{GuestExit: code(0), Faults: 3, CRCErrors: 1}, run.Exited, 0, "code 0"},
		{"faults", run.Evidence{Faults: 2}, run.Corrupt, 123, "2 faults"},
		{"damaged messages", run.Evidence{CRCErrors: 1, GuestEnd: vm.ErrReset}, run.Corrupt, 123, "1 damaged"},
		{"deadline", run.Evidence{TimedOut: "the hard deadline passed", Faults: 1}, run.TimedOut, 124, "hard deadline"},
		{"deadline, then exit", run.Evidence{TimedOut: "the soft deadline passed", GuestExit: code(0)}, run.TimedOut, 124,
			"the guest exited with code 0"},
		{"scheduler", run.Evidence{SchedulerExit: gone, TimedOut: "x"}, run.SchedulerGone, 121, "with code 7"},
		{"scheduler without a code", run.Evidence{SchedulerExit: &run.SchedulerExit{}, GuestExit: code(0)},
			run.SchedulerGone, 121, "without a code"},
		{"crash", run.Evidence{Crash: &crash, SchedulerExit: gone}, run.Crashed, 122,
			"the guest crashed: Kernel panic - not syncing: boom"},
		{"crash without a word", run.Evidence{Crash: new(string)}, run.Crashed, 122, "the guest crashed"},
		{"SIGINT", run.Evidence{Signal: os.Interrupt, Crash: &crash}, run.Interrupted, 130, "interrupted by SIGINT"},
		{"SIGTERM", run.Evidence{Signal: syscall.SIGTERM, GuestExit: code(0)}, run.Interrupted, 143,
			"interrupted by SIGTERM"},
		{"host error", run.Evidence{Err: errors.New("no memory"), Signal: os.Interrupt, GuestExit: code(0)},
			run.Failed, 125, "no memory"},
	} {
		outcome, exit, reason := run.Decide(tc.evidence)
		if outcome != tc.outcome || exit != tc.exit || !strings.Contains(reason, tc.reason) {
			t.Errorf("%s: %s, %d, %q; want %s, %d, …%q…", tc.name, outcome, exit, reason, tc.outcome, tc.exit, tc.reason)
		}
	}
}

// Of all that happened, the outcome is the first in interface.md's order.
func TestDecideOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e run.Evidence
		maybe := func(name string) bool { return rapid.Bool().Draw(t, name) }
		want := run.NoVerdict
		if maybe("exit") {
			e.GuestExit, want = code(rapid.Int32().Draw(t, "code")), run.Exited
		}
		if maybe("faults") {
			e.Faults = 1
			if e.GuestExit == nil { // else the ring could be followed to an EXIT
				want = run.Corrupt
			}
		}
		if maybe("timeout") {
			e.TimedOut, want = "a deadline passed", run.TimedOut
		}
		if maybe("scheduler") {
			e.SchedulerExit, want = &run.SchedulerExit{}, run.SchedulerGone
		}
		if maybe("crash") {
			crash := rapid.String().Draw(t, "text")
			e.Crash, want = &crash, run.Crashed
		}
		if maybe("signal") {
			e.Signal, want = syscall.SIGTERM, run.Interrupted
		}
		if maybe("error") {
			e.Err, want = errors.New("host"), run.Failed
		}
		outcome, exit, reason := run.Decide(e)
		if outcome != want || reason == "" || exit < 0 || exit > 255 {
			t.Fatalf("%+v: %s, %d, %q; want %s", e, outcome, exit, reason, want)
		}
		if outcome != run.Exited && exit == 0 {
			t.Fatalf("%+v: exit code 0", e)
		}
	})
}
