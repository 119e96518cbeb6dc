package run_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// held is what a process holds of the host. Mappings are those of machines: the ring's memfd,
// vCPU pages, guest RAM.
type held struct{ goroutines, threads, files, mappings, children int }

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
	mappings := 0
	for line := range strings.Lines(string(maps)) {
		var start, end uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			t.Fatal(err)
		}
		// RAM is mapped in two pieces: what huge pages are asked for, and what they are not.
		ram := end-start == (vm.DefaultMemory-vm.DefaultReserved)-16<<20
		if ram || strings.Contains(line, "memfd:") || strings.Contains(line, "kvm-vcpu") {
			mappings++
		}
	}
	return held{runtime.NumGoroutine(), count("/proc/self/task"), count("/proc/self/fd"), mappings,
		len(vmtest.Children(t, os.Getpid()))}
}

// Hundreds of runs with mixed endings in one process leave nothing behind.
func TestRunsLeaveNothing(t *testing.T) {
	testenv.EachMachine(t, runsLeaveNothing)
}

func runsLeaveNothing(t *testing.T, m testenv.Machine) {
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
	// The Go runtime keeps threads for the next time and now and then needs one more; a leak
	// would be one or more a run.
	const spareThreads = 8
	runs, warmUp := 300, 100
	switch {
	case m.Arch != "x86_64": // only what is the platform's own differs, and is the same in each run
		runs, warmUp = 100, 40
	case testing.Short(): // each ending comes more often behind the warm-up than there are spare threads
		runs, warmUp = 150, 40
	}
	var before held
	during := 0 // mappings, to know that they are found
	for i := range runs {
		if i == warmUp {
			before = holds(t)
		}
		e := endings[i%len(endings)]
		cfg := scenario(t, m, e.words)
		cfg.Timeout = e.timeout
		if during == 0 { // once is enough
			cfg.OnStart = func() { during = holds(t).mappings }
		}
		if i%7 == 0 {
			// A run that fails to start: the back end is not there, or a part of the machine is not.
			if i%2 == 0 {
				cfg.VM.Backend = map[string]vm.Backend{
					"kvm": kvm.Backend{Device: "/nonexistent"}, "emulator": qemu.Backend{Program: "/bin/false"},
				}[m.Backend.Name()]
			} else {
				cfg.VM.Kernel = x86.ELF{File: strings.NewReader("no kernel")}
			}
			e.outcome, cfg.Timeout = run.Failed, time.Minute
		}
		r := run.Run(t.Context(), cfg)
		if r.Outcome != e.outcome {
			t.Fatalf("run %d, %s: %s (%s)", i, e.words, r.Outcome, r.Reason)
		}
		if spoke := r.Outcome != run.TimedOut && r.Outcome != run.Failed; spoke && r.FirstExit <= 0 {
			t.Errorf("run %d, %s: the guest was first heard of after %v", i, e.words, r.FirstExit)
		}
	}
	after := holds(t)
	// A goroutine that has said that it is done may not be gone yet; one that leaks never is.
	for deadline := time.Now().Add(hangLimit); after.goroutines > before.goroutines &&
		time.Now().Before(deadline); after = holds(t) {
		time.Sleep(time.Millisecond)
	}
	if after.goroutines > before.goroutines || after.files > before.files || after.mappings > 0 ||
		after.children > before.children || after.threads > before.threads+spareThreads {
		t.Errorf("after %d runs: %+v, after %d: %+v", runs, after, warmUp, before)
	}
	if during == 0 {
		t.Errorf("only %d mappings of a running machine were found", during)
	}
}
