package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// How many runs the measured suites have: one that is run, and one as large as there can be, of which the first run
// fails and no other is started.
const (
	suiteRuns  = 200
	manyRuns   = 10000
	fastFailed = "--fail-fast"
)

// suites measures a suite of short runs of the embedded guest: on one back end, which is auto if none is named.
func suites(args []string) error {
	fmt.Printf("%s\n\n", host())
	accel := "auto"
	if len(args) > 0 {
		accel = args[0]
	}
	dir, err := os.MkdirTemp("", "bench-suite")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var one time.Duration
	few := list("ok", suiteRuns)
	for _, jobs := range []int{0, 1, 4} { // the first one warms up what is warm for the others
		s, err := runSuite(dir, accel, few, jobs)
		if err != nil {
			return err
		}
		if s.err != nil {
			return fmt.Errorf("the suite: %w", s.err)
		}
		s.show()
		if jobs == 1 {
			one = s.wall
		}
		if jobs == 4 {
			r := s.wall.Seconds() / one.Seconds()
			goal("time of 4 jobs to that of 1", fmt.Sprintf("%.2f", r), "≤ 0.6", r <= 0.6)
		}
		fmt.Println()
	}
	s, err := runSuite(dir, accel, list("fail", manyRuns), 1, fastFailed)
	if err != nil {
		return err
	}
	if n := s.report.Counts[suite.Skipped]; n != manyRuns-1 {
		return fmt.Errorf("%d runs were skipped, want all of %d but the first", n, manyRuns)
	}
	s.showMemory(fmt.Sprintf("the memory of a suite of %d runs", manyRuns))
	return nil
}

// list is a suite's list of runs.
func list(scenario string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "- {name: run %d, scenario: %s}\n", i+1, scenario)
	}
	return b.String()
}

// measuredSuite is what a suite took.
type measuredSuite struct {
	jobs   int
	report *suite.Report
	err    error // how the process ended
	wall   time.Duration
	cpu    time.Duration // of the suite's process
	runs   time.Duration // of all others: each run's process and its emulator
	own    time.Duration // of the runs' processes without their emulators
	rss    int           // KiB, the most that the suite's process had
}

func runSuite(dir, accel, runs string, jobs int, args ...string) (*measuredSuite, error) {
	file, results := filepath.Join(dir, "suite.yaml"), filepath.Join(dir, "results")
	text := "name: bench\ndefaults: {memory: 16M, shm-size: 1M, accel: " + accel + "}\nruns:\n" + runs
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(vmmBinary, append([]string{"suite", file, "--results", results, "--exporter", "none", "--jobs",
		strconv.Itoa(jobs)}, args...)...)
	start := time.Now()
	err := cmd.Start()
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	s := &measuredSuite{jobs: jobs}
	own := map[int]time.Duration{}
	for waiting := true; waiting; {
		select {
		case s.err = <-done:
			waiting = false
		case <-time.After(5 * time.Millisecond):
			s.look(cmd.Process.Pid, own)
		}
	}
	s.wall = time.Since(start)
	s.runs = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() - s.cpu
	for _, d := range own {
		s.own += d
	}
	s.report, err = suite.ReadReport(results)
	return s, err
}

func (s *measuredSuite) show() {
	jobs := "as many jobs as fit"
	if s.jobs > 0 {
		jobs = fmt.Sprintf("--jobs %d", s.jobs)
	}
	accelerators := map[string]bool{}
	for _, x := range s.report.Runs {
		accelerators[x.Accelerator] = true
	}
	passed := s.report.Counts[suite.Passed]
	on := strings.Join(slices.Sorted(maps.Keys(accelerators)), " and ")
	goal(fmt.Sprintf("%d runs on %s, %s", suiteRuns, on, jobs),
		fmt.Sprintf("%d passed in %v", passed, s.wall.Round(10*time.Millisecond)), "all pass", passed == suiteRuns)
	share := s.cpu.Seconds() / s.runs.Seconds()
	goal("the suite's processor time to that of its runs", fmt.Sprintf("%.1f %% (%v to %v)", 100*share,
		s.cpu.Round(time.Millisecond), s.runs.Round(time.Millisecond)), "≤ 10 %", share <= 0.1)
	if !accelerators["kvm"] {
		figure("the runs' own processes to their emulators", fmt.Sprintf("%.1f %%, as far as could be seen",
			100*s.own.Seconds()/(s.runs-s.own).Seconds()))
	}
	s.showMemory("the suite's memory")
}

func (s *measuredSuite) showMemory(name string) {
	goal(name, fmt.Sprintf("%d KiB", s.rss), "≤ 64 MiB", s.rss <= 64<<10)
}

// look sees what the suite's process and those of its runs have taken so far; what it sees last is what counts.
func (s *measuredSuite) look(pid int, own map[int]time.Duration) {
	if d, err := ownTime(pid); err == nil {
		s.cpu = d
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
		for line := range strings.Lines(string(text)) {
			_, _ = fmt.Sscanf(line, "VmHWM: %d kB", &s.rss)
		}
	}
	runs, err := children(pid)
	if err != nil {
		return
	}
	for _, run := range runs {
		if d, err := ownTime(run); err == nil {
			own[run] = d
		}
	}
}

// ownTime is a process's processor time, that of threads that have ended included: proc(5), /proc/PID/stat, utime and
// stime, in hundredths of a second.
func ownTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // behind the name
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err := strconv.Atoi(fields[11])
	system, errSystem := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, errSystem)
}
