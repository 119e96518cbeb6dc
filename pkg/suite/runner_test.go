package suite_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// ran runs a suite of one run whose program is a shell script. It finds the path for its report in $report.
func ran(t *testing.T, script string, change func(*suite.Runner, *suite.Run)) (*suite.Report, string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	text := "#!/bin/sh\nfor a; do case $a in --report=*) report=${a#--report=} ;; esac; done\n" + script
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	results, err := suite.OpenResults(filepath.Join(dir, "results"))
	if err != nil {
		t.Fatal(err)
	}
	defer results.Close()
	x := &suite.Run{Name: "x", Command: config.Demo, Expect: suite.Expect{Outcome: run.Exited, ExitCode: code(0)},
		Timeout: time.Minute}
	r := &suite.Runner{Program: program, Environ: os.Environ(), Results: results}
	if change != nil {
		change(r, x)
	}
	report, err := r.Run("s", []string{"x"}, []*suite.Run{x})
	if err != nil {
		t.Fatal(err)
	}
	return report, results.Dir
}

const writeReport = `printf %s '{"outcome": "exited", "reason": "so", "stimuli": [{"elapsed_ms": 1}, {"elapsed_ms": 9,
	"total_iterations": 5}], "results": [1, {}], "ring": {"messages": 3}, "more": [], "console_tail": "a\n\nb"}' >$report
`

const exits125 = `printf %s '{"outcome": "exited", "exit_code": 125, "reason": "so", "ring": {"messages": 3},
	"stimuli": [{"elapsed_ms": 9, "total_iterations": 5}]}' >$report; exit 125
`

func expect125(_ *suite.Runner, x *suite.Run) { x.Expect.ExitCode = code(125) }

// Whatever a run's process does, the suite says what became of it.
func TestProcesses(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		change func(*suite.Runner, *suite.Run)
		status suite.Status
		reason string
	}{
		"passes":          {writeReport, nil, suite.Passed, "so"},
		"fails":           {writeReport + "exit 3", nil, suite.Failed, "so"},
		"fails with 125":  {exits125, nil, suite.Failed, "so"},
		"was to say 125":  {exits125, expect125, suite.Passed, "so"},
		"is killed":       {writeReport + "kill -9 $$", nil, suite.Lost, "its process ended by a signal: signal: killed"},
		"leaves nothing":  {"exit 7", nil, suite.Lost, "exit code 7 and left no report: open "},
		"leaves rubbish":  {"echo '[' >$report", nil, suite.Lost, "left no report: [, where { is expected"},
		"leaves a part":   {`echo '{"outcome": "exi' >$report`, nil, suite.Lost, "left no report: outcome: "},
		"leaves a pipe":   {"mkfifo $report", nil, suite.Lost, "is no plain file"},
		"does not start":  {"echo 'ktstr-vmm: no KVM' >&2; exit 125", nil, suite.Failed, "no KVM"},
		"can't be kept":   {writeReport + "echo 'ktstr-vmm: --ring: full' >&2; exit 125", nil, suite.Failed, "--ring: full"},
		"is not there":    {"", func(r *suite.Runner, _ *suite.Run) { r.Program = "/none" }, suite.Failed, "no such file"},
		"leaves a child":  {writeReport + "sleep 1000 & exit 0", impatient, suite.Passed, "so"},
		"does not end":    {"exec sleep 1000", overdue, suite.Lost, "it did not end within 301ms and was killed"},
		"passes later":    {`[ -e $0.2 ] || { >$0.2; exit 7; }` + "\n" + writeReport, retry, suite.Flaky, "so"},
		"fails again":     {"exit 7", retry, suite.Lost, "exit code 7"},
		"writes too much": {writeReport + "head -c 80M /dev/zero; head -c 80M /dev/zero >&2", nil, suite.Passed, "so"},
	} {
		t.Run(name, func(t *testing.T) {
			r, dir := ran(t, c.script, c.change)
			x := r.Runs[0]
			if x.Status != c.status || !strings.Contains(x.Reason, c.reason) {
				t.Errorf("%s, %s; want %s, %s", x.Status, x.Reason, c.status, c.reason)
			}
			if x.Status == suite.Passed && (x.Messages != 3 || x.Iterations != 5 || x.IterationsMS != 9) {
				t.Errorf("%+v", x)
			}
			if n := map[suite.Status]int{suite.Flaky: 1}[x.Status]; c.reason != "exit code 7" && len(x.Earlier) != n {
				t.Errorf("%d earlier attempts", len(x.Earlier))
			}
			for _, file := range []string{"stdout.log", "stderr.log"} {
				info, err := os.Stat(filepath.Join(dir, x.Folder, file))
				if name != "is not there" && (err != nil || info.Size() > 64<<20) {
					t.Errorf("%s: %v, %v", file, info, err)
				}
			}
		})
	}
}

func impatient(r *suite.Runner, _ *suite.Run) { r.Overdue = 300 * time.Millisecond }

func overdue(r *suite.Runner, x *suite.Run) {
	r.Overdue, x.Timeout = 300*time.Millisecond, time.Millisecond
}

func retry(r *suite.Runner, _ *suite.Run) { r.Retries = 1 }

// An attempt that failed counts if the next one is interrupted.
func TestInterruptedRetry(t *testing.T) {
	signals := make(chan os.Signal, 1)
	r, _ := ran(t, `[ -e $0.2 ] || { >$0.2; exit 7; }
		>$report.2; exec sleep 1000`, func(r *suite.Runner, _ *suite.Run) {
		r.Retries, r.Signals = 1, signals
		r.OnEnd = func(_ *suite.Run, _ *suite.Result, again bool) {
			if again {
				signals <- syscall.SIGTERM
			}
		}
	})
	x := r.Runs[0]
	const want = "it was not tried again: the suite was ended by SIGTERM"
	if x.Status != suite.Lost || !strings.Contains(x.Reason, want) || len(x.Earlier) != 0 || r.ExitCode() != 143 {
		t.Errorf("%+v, exit code %d", x, r.ExitCode())
	}
}

// A run that a signal ends before it has a place for its report was interrupted, whatever it was doing.
func TestInterruptedBeforeItsReport(t *testing.T) {
	signals := make(chan os.Signal, 1)
	r, _ := ran(t, "trap 'exit 143' TERM; while :; do sleep 0.01; done", func(r *suite.Runner, _ *suite.Run) {
		r.Signals = signals
		r.OnStart = func(*suite.Run) { signals <- syscall.SIGTERM }
	})
	if x := r.Runs[0]; x.Status != suite.Skipped || r.ExitCode() != 143 {
		t.Errorf("%+v, exit code %d", x, r.ExitCode())
	}
}

// As many runs are done at a time as there is room for, in their order.
func TestRoom(t *testing.T) {
	results, err := suite.OpenResults(filepath.Join(t.TempDir(), "results"))
	if err != nil {
		t.Fatal(err)
	}
	defer results.Close()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 0.05\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for jobs, most := range map[int]int{1: 1, 3: 3, 0: 1} { // 0: each takes all of the host's processors
		var runs []*suite.Run
		for i := range 9 {
			runs = append(runs, &suite.Run{Name: fmt.Sprint(i), Command: config.Demo, CPUs: 1 << 20, Timeout: time.Minute})
		}
		running, peak, order := 0, 0, ""
		r := &suite.Runner{Program: program, Results: results, Jobs: jobs,
			OnStart: func(x *suite.Run) { running++; peak = max(peak, running); order += x.Name },
			OnEnd:   func(*suite.Run, *suite.Result, bool) { running-- }}
		if _, err := r.Run("s", nil, runs); err != nil {
			t.Fatal(err)
		}
		if peak != most || order != "012345678" || running != 0 {
			t.Errorf("%d jobs: %d at a time, want %d; %s", jobs, peak, most, order)
		}
	}
}
