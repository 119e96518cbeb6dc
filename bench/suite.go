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

// suiteRuns is how many runs the measured suite has.
const suiteRuns = 200

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
	for _, jobs := range []int{0, 1, 4} { // the first one warms up what is warm for the others
		s, err := runSuite(dir, accel, jobs)
		if err != nil {
			return err
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
	return nil
}

// measuredSuite is what a suite took.
type measuredSuite struct {
	jobs   int
	report *suite.Report
	wall   time.Duration
	cpu    time.Duration // of the suite's process
	runs   time.Duration // of all others: each run's process and its emulator
	own    time.Duration // of the runs' processes without their emulators
	rss    int           // KiB, the most that the suite's process had
}

func runSuite(dir, accel string, jobs int) (*measuredSuite, error) {
	file, results := filepath.Join(dir, "suite.yaml"), filepath.Join(dir, "results")
	text := "name: bench\ndefaults: {memory: 16M, shm-size: 1M, accel: " + accel + "}\nruns:\n"
	for i := range suiteRuns {
		text += fmt.Sprintf("- {name: run %d, scenario: ok}\n", i+1)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(vmmBinary, "suite", file, "--results", results, "--exporter", "none", "--jobs", strconv.Itoa(jobs))
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
		case err = <-done:
			waiting = false
		case <-time.After(5 * time.Millisecond):
			s.look(cmd.Process.Pid, own)
		}
	}
	s.wall = time.Since(start)
	if err != nil {
		return nil, fmt.Errorf("the suite: %w", err)
	}
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
	goal(fmt.Sprintf("%d runs on %s, %s", suiteRuns, strings.Join(slices.Sorted(maps.Keys(accelerators)), " and "), jobs), fmt.Sprintf("%d passed in %v", passed,
		s.wall.Round(10*time.Millisecond)), "all pass", passed == suiteRuns)
	share := s.cpu.Seconds() / s.runs.Seconds()
	goal("the suite's processor time to that of its runs", fmt.Sprintf("%.1f %% (%v to %v)", 100*share,
		s.cpu.Round(time.Millisecond), s.runs.Round(time.Millisecond)), "≤ 10 %", share <= 0.1)
	if !accelerators["kvm"] {
		figure("the runs' own processes to their emulators", fmt.Sprintf("%.1f %%, as far as could be seen",
			100*s.own.Seconds()/(s.runs-s.own).Seconds()))
	}
	goal("the suite's memory", fmt.Sprintf("%d KiB", s.rss), "≤ 64 MiB", s.rss <= 64<<10)
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
