package run_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/needs"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// held is what a process holds of the host.
type held struct{ goroutines, threads, files, mappings int }

func holds(t *testing.T) held {
	t.Helper()
	count := func(dir string) int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return held{runtime.NumGoroutine(), count("/proc/self/task"), count("/proc/self/fd"), strings.Count(string(maps), "\n")}
}

func (h held) over(most held) bool {
	return h.goroutines > most.goroutines || h.threads > most.threads || h.files > most.files || h.mappings > most.mappings
}

func (h held) max(o held) held {
	return held{max(h.goroutines, o.goroutines), max(h.threads, o.threads), max(h.files, o.files), max(h.mappings, o.mappings)}
}

// 300 runs with mixed endings in one process leave nothing behind.
func TestRunsLeaveNothing(t *testing.T) {
	needs.KVM(t)
	endings := []struct {
		words   string
		timeout time.Duration
		outcome run.Outcome
	}{
		{"ok demo.step_ms=0", time.Minute, run.Exited},
		{"fail", time.Minute, run.Exited},
		{"sched-exit", time.Minute, run.SchedulerGone},
		{"crash", time.Minute, run.Crashed},
		{"silent", time.Minute, run.NoVerdict},
		{"triple-fault", time.Minute, run.NoVerdict},
		{"hang", 30 * time.Millisecond, run.TimedOut},
		{"halt", 30 * time.Millisecond, run.TimedOut},
		{"hostile demo.lie=ahead", time.Minute, run.Corrupt},
		{"no-such-scenario", time.Minute, run.Exited}, // EXIT 91
	}
	const runs, warmUp = 300, 100
	var most held // what the first runs need at most: the Go runtime keeps threads for the next
	for i := range runs {
		e := endings[i%len(endings)]
		cfg := scenario(e.words)
		cfg.Timeout = e.timeout
		if i%7 == 0 {
			cfg.VM.Device = "/nonexistent" // a run that fails to start
			e.outcome = run.Failed
		}
		if r := run.Run(t.Context(), cfg); r.Outcome != e.outcome {
			t.Fatalf("run %d, %s: %s (%s)", i, e.words, r.Outcome, r.Reason)
		}
		if i < warmUp {
			most = most.max(holds(t))
		}
	}
	// The kernel frees a machine's last file a moment after it is closed.
	var now held
	for range 50 {
		if now = holds(t); !now.over(most) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("after %d runs: %s, after %d at most %s", runs, fmt.Sprintf("%+v", now), warmUp, fmt.Sprintf("%+v", most))
}
