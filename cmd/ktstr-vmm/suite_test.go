package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/ptytest"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// suiteRun is a suite that is being run by the program.
type suiteRun struct {
	*exec.Cmd
	dir    string // of the results
	stdout bytes.Buffer
	stderr bytes.Buffer
}

// suiteOf makes a suite with this list of runs.
func suiteOf(t *testing.T, runs string, args ...string) *suiteRun {
	t.Helper()
	b := testenv.Backend(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "suite.yaml")
	text := "name: s\ndefaults: {memory: 8M, shm-size: 64K, arch: x86_64, accel: " + b.Name() + "}\nruns:\n" + runs
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &suiteRun{dir: filepath.Join(dir, "results")}
	s.Cmd = exec.Command(program(t), append([]string{"suite", file, "--exporter", "none", "--results", s.dir}, args...)...)
	s.Stdout, s.Stderr = &s.stdout, &s.stderr
	return s
}

// report is what the suite left.
func (s *suiteRun) report(t *testing.T) *suite.Report {
	t.Helper()
	r, err := suite.ReadReport(s.dir)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, s.stdout.Bytes(), s.stderr.Bytes())
	}
	judge(t, s.dir)
	return r
}

// judge judges a results folder's report by its schema.
func judge(t *testing.T, dir string) {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "..", "configs", "schema", "suite-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "suite.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v, err := jsonschema.UnmarshalJSON(f)
	if err == nil {
		err = schema.Validate(v)
	}
	if err != nil {
		t.Errorf("suite.json: %v", err)
	}
}

// statuses are the runs' by name.
func statuses(r *suite.Report) string {
	var words []string
	for _, x := range r.Runs {
		words = append(words, fmt.Sprintf("%s: %s", x.Name, x.Status))
	}
	return strings.Join(words, ", ")
}

// start starts the suite, which does not outlive the test.
func (s *suiteRun) start(t *testing.T) {
	t.Helper()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Process.Kill() })
}

// running waits until the suite has at least so many runs going on, and returns their processes. Go's own children for
// a moment, with which it tries what the kernel has, are none.
func (s *suiteRun) running(t *testing.T, n int) (runs []int) {
	t.Helper()
	for limit := time.Now().Add(hangLimit); ; time.Sleep(10 * time.Millisecond) {
		runs = slices.DeleteFunc(vmtest.Children(t, s.Process.Pid), func(pid int) bool {
			args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return err != nil || !bytes.Contains(args, []byte("--report="))
		})
		if len(runs) >= n {
			return runs
		}
		if time.Now().After(limit) {
			t.Fatalf("%d runs go on, want %d", len(runs), n)
		}
	}
}

// While a suite's runs go on, and in their reports, they have their names in the suite.
func TestSuiteNames(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	long := "a run " + strings.Repeat("with a long name ", 20)
	s := suiteOf(t, "- {name: hangs, scenario: hang, grace: 0s, matrix: {timeout: [50s, 60s]}}\n"+
		"- {name: "+long+", scenario: hang, grace: 0s}", "--jobs", "3")
	s.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+p.dir)
	s.start(t)
	want := []string{strings.TrimSpace(long), "hangs[timeout=50s]", "hangs[timeout=60s]"}
	var got []string
	for limit := time.Now().Add(hangLimit); !slices.Equal(got, want); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("ps has the runs %q, want %q", got, want)
		}
		got = nil
		for _, run := range p.ps() {
			got = append(got, run.Name)
		}
		slices.Sort(got)
	}
	table, err := p.command("ps").Output()
	for _, name := range append(want[1:], want[0][:39]+"…") { // a run is a line
		if err != nil || !strings.Contains(string(table), "  "+name+"  ") {
			t.Errorf("ps: %v, %s", err, table)
		}
	}
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ends(t, s.Cmd)
	for _, x := range s.report(t).Runs {
		if r := readReport(t, filepath.Join(s.dir, x.Folder, "report.json")); r.Name != x.Name {
			t.Errorf("the report of %s is of %q", x.Name, r.Name)
		}
	}
}

// No name is too long for a run, though Linux has limits of what a process is told.
func TestSuiteLongName(t *testing.T) {
	t.Parallel()
	s := suiteOf(t, "- {name: "+strings.Repeat("x", 200<<10)+", scenario: ok}")
	s.start(t)
	code := ends(t, s.Cmd)
	if r := s.report(t); code != 0 || len(r.Runs) != 1 || r.Runs[0].Status != suite.Passed {
		t.Errorf("exit code %d, %.500s", code, r.Runs[0].Reason)
	}
}

// One run's process is killed: the suite says so, and goes on; another attempt may pass, and is flaky then.
func TestSuiteKilledRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		retries int
		want    string
		code    int
	}{
		{0, "hangs: lost, fails: failed, ok: passed", 1},
		{1, "hangs: flaky, fails: failed, ok: passed", 1},
	} {
		s := suiteOf(t, `
- {name: hangs, scenario: hang, timeout: 8s, grace: 0s, expect: {outcome: timeout}}
- {name: fails, scenario: fail}
- {name: ok, scenario: ok}
`, "--jobs", "1", "--retries", strconv.Itoa(c.retries))
		s.start(t)
		if err := syscall.Kill(s.running(t, 1)[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		code := ends(t, s.Cmd)
		r := s.report(t)
		if got := statuses(r); code != c.code || got != c.want {
			t.Errorf("exit code %d, %s, want %s\n%s%s", code, got, c.want, s.stdout.Bytes(), s.stderr.Bytes())
		}
		const lost = "hangs: its process ended by a signal: signal: killed"
		if !strings.Contains(s.stdout.String(), lost) {
			t.Errorf("no %q in %s", lost, s.stdout.Bytes())
		}
		if n := len(r.Runs[0].Earlier); n != c.retries {
			t.Errorf("%d earlier attempts, want %d", n, c.retries)
		}
	}
}

// A signal ends all machines and then the suite, whose reports are whole.
func TestSuiteInterrupted(t *testing.T) {
	t.Parallel()
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		s := suiteOf(t, `
- {name: a, scenario: graceful, timeout: 10m, grace: 1s}
- {name: b, scenario: graceful, timeout: 10m, grace: 1s}
- {name: c, scenario: ok}
`, "--jobs", "2")
		s.start(t)
		runs := s.running(t, 2)
		s.waitForGuest(t, "a")
		s.waitForGuest(t, "b")
		if err := s.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		got := ends(t, s.Cmd)
		r := s.report(t)
		if words := statuses(r); got != code || words != "a: skipped, b: skipped, c: skipped" {
			t.Errorf("%v: exit code %d, %s\n%s%s", sig, got, words, s.stdout.Bytes(), s.stderr.Bytes())
		}
		for _, x := range r.Runs[:2] {
			text, err := os.ReadFile(filepath.Join(s.dir, x.Folder, "report.json"))
			var report struct{ Outcome string }
			if err == nil {
				err = json.Unmarshal(text, &report)
			}
			if err != nil || report.Outcome != "interrupted" {
				t.Errorf("%s: %v, %s", x.Name, err, text)
			}
		}
		for _, pid := range runs {
			if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
				t.Errorf("process %d is left: %v", pid, err)
			}
		}
	}
}

// waitForGuest waits until a run's guest has said something.
func (s *suiteRun) waitForGuest(t *testing.T, run string) {
	t.Helper()
	log := filepath.Join(s.dir, "runs", run, "stdout.log")
	for limit := time.Now().Add(hangLimit); ; time.Sleep(10 * time.Millisecond) {
		if text, _ := os.ReadFile(log); bytes.Contains(text, []byte("SCST")) {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("the guest of %s has said nothing", run)
		}
	}
}

// A suite that is killed leaves no run behind, and a report that says which were not done.
func TestSuiteKilled(t *testing.T) {
	t.Parallel()
	s := suiteOf(t, `
- {name: a, scenario: graceful, timeout: 10m, grace: 1s}
- {name: b, scenario: ok}
`, "--jobs", "1")
	s.start(t)
	run := s.running(t, 1)[0]
	s.waitForGuest(t, "a")
	_ = s.Process.Kill()
	ends(t, s.Cmd)
	for limit := time.Now().Add(hangLimit); syscall.Kill(run, 0) != syscall.ESRCH; time.Sleep(10 * time.Millisecond) {
		if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", run)); err != nil ||
			bytes.Contains(status, []byte("State:\tZ")) {
			break // nobody may reap it where the tests run
		}
		if time.Now().After(limit) {
			t.Fatalf("process %d is left", run)
		}
	}
	if got := statuses(s.report(t)); got != "a: lost, b: lost" {
		t.Error(got)
	}
}

// A merged report is one, too, where a shard is missing as well.
func TestSuiteMergedInPart(t *testing.T) {
	t.Parallel()
	s := suiteOf(t, "- {name: a, scenario: ok}\n- {name: b, scenario: ok}\n", "--shard", "1/2")
	if err := s.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, s.stdout.Bytes(), s.stderr.Bytes())
	}
	dir := filepath.Join(t.TempDir(), "merged")
	out, err := exec.Command(s.Path, "suite", "merge", "--results", dir, s.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "b: no shard has it\ns: 1 passed, 1 lost") {
		t.Errorf("%v\n%s", err, out)
	}
	judge(t, dir)
}

// The third signal ends a suite whose runs do not end, and these with it.
func TestSuiteThreeSignals(t *testing.T) {
	t.Parallel()
	s := suiteOf(t, "- {name: a, scenario: graceful, timeout: 10m, grace: 5m}\n", "--jobs", "1")
	s.start(t)
	run := s.running(t, 1)[0]
	s.waitForGuest(t, "a")
	if err := syscall.Kill(run, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(run, syscall.SIGKILL) })
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := s.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // the kernel delivers what is pending in its own order
	}
	if code := ends(t, s.Cmd); code < 129 || !strings.Contains(s.stderr.String(), "3 signals: the suite is over") {
		t.Errorf("exit code %d, %s", code, s.stderr.Bytes())
	}
}

// A disk that is full is said, and costs no verdict that there was.
func TestSuiteOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", os.ErrPermission)
	}
	s := suiteOf(t, "- {name: a, scenario: ok}\n- {name: b, scenario: ok}\n", "--jobs", "1")
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", s.dir, "tmpfs", 0, "size=40k"); err != nil {
		testenv.Missing(t, "a tmpfs", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(s.dir, unix.MNT_DETACH) })
	s.start(t)
	code := ends(t, s.Cmd)
	if all := s.stdout.String() + s.stderr.String(); code == 0 || !strings.Contains(all, "no space left on device") {
		t.Errorf("exit code %d, %s", code, all)
	}
}

// A terminal that goes away, or is small, takes no run with it.
func TestSuiteWithoutItsTerminal(t *testing.T) {
	t.Parallel()
	s := suiteOf(t, "- {scenario: ok, matrix: {timeout: [11s, 12s, 13s, 14s, 15s, 16s, 17s, 18s]}}\n", "--jobs", "4")
	master, slave := ptytest.Open(t)
	ptytest.Resize(t, master, 4, 20)
	s.Stdout = slave
	s.Env = append(os.Environ(), "TERM=xterm")
	s.start(t)
	slave.Close()
	s.running(t, 1)
	master.Close()
	if code := ends(t, s.Cmd); code != 0 {
		t.Errorf("exit code %d, %s", code, s.stderr.Bytes())
	}
	if r := s.report(t); r.Counts[suite.Passed] != 8 {
		t.Errorf("%v", r.Counts)
	}
}

// Nobody reads what a suite shows: it ends all the same, and its reports are whole.
func TestSuiteThatNobodyReads(t *testing.T) {
	t.Parallel()
	s := suiteOf(t, "- {name: a, scenario: ok}\n- {name: b, scenario: fail, expect: {exit-code: 3}}\n")
	w := pipe(t, stuck)
	defer w.Close()
	s.Stdout = w
	s.start(t)
	if code := ends(t, s.Cmd); code != 0 {
		t.Errorf("exit code %d, %s", code, s.stderr.Bytes())
	}
	if got := statuses(s.report(t)); got != "a: passed, b: passed" {
		t.Error(got)
	}
}

// On a terminal a bar shows how far the suite is, and goes away; the lines stay.
func TestSuiteOnATerminal(t *testing.T) {
	t.Parallel()
	s := suiteOf(t, "- {name: a, scenario: ok}\n- {name: b, scenario: fail}\n", "--jobs", "1")
	master, slave := ptytest.Open(t)
	s.Stdout = slave
	s.Env = append(os.Environ(), "TERM=xterm")
	s.start(t)
	slave.Close()
	var shown bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = shown.ReadFrom(master) // EIO when the other end is closed
	}()
	code := ends(t, s.Cmd)
	<-read
	for _, pattern := range []string{`[0-2]/2 done, [01] running`, `\x1b\[J`, `\[1/2\] passed `, `\[2/2\] failed `,
		`\x1b\[J(\[2/2\] failed .*\r\n)?s: 1 passed, 1 failed in .*\r\nreports: .*\r\n$`} {
		if !regexp.MustCompile(pattern).MatchString(shown.String()) {
			t.Errorf("exit code %d, no %q in %q", code, pattern, shown.String())
		}
	}
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
}

// A new user's first suite is green with one command, with KVM where there is one and without.
func TestFirstSuite(t *testing.T) {
	t.Parallel()
	testenv.Emulator(t)
	testenv.EmulatorOf(t, "arm64")
	for _, accel := range []string{"auto", "emulator"} {
		results := filepath.Join(t.TempDir(), "results")
		cmd := exec.Command(program(t), "suite", filepath.Join("..", "..", "configs", "suite.yaml"), "--exporter", "none",
			"--results", results)
		cmd.Env = append(os.Environ(), "KTSTR_VMM_ACCEL="+accel)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "first: 8 passed in ") {
			t.Errorf("%s: %v\n%s", accel, err, out)
		}
	}
}

// Files and flags that are wrong are one line and 125, and nothing is made.
func TestSuiteRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "suite.yaml")
	if err := os.WriteFile(file, []byte("name: s\nruns: [{scenario: ok}, {scenario: fail}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "suite takes FILE, 0 were given"},
		{[]string{filepath.Join(dir, "none.yaml")}, "no such file"},
		{[]string{file, "--jobs", "-1"}, "--jobs -1: it can be 0 to 10000"},
		{[]string{file, "--retries", "101"}, "--retries 101: it can be 0 to 100"},
		{[]string{file, "--filter", "("}, `--filter "(": error parsing regexp`},
		{[]string{file, "--filter", "dance"}, `--filter "dance" matches no name and no label of 2 runs`},
		{[]string{file, "--shard", "0/2"}, `--shard "0/2": it is I/N`},
		{[]string{file, "--shard", "3/2"}, `--shard "3/2": it is I/N`},
		{[]string{file, "--shard", "1"}, `--shard "1": it is I/N`},
		{[]string{file, "--durations", dir}, "--durations: open "},
		{[]string{file, "--metrics-push", "here"}, `--metrics-push "here": it is a URL`},
		{[]string{"merge"}, "suite merge takes one or more DIR, 0 were given"},
		{[]string{"merge", "--results", dir, dir}, "suite.json: no such file"},
		{[]string{"compare", dir}, "suite compare takes OLD and NEW, 1 were given"},
		{[]string{"compare", dir, dir}, "suite.json: no such file"},
		{[]string{"compare", file, file}, "no report of a suite: "},
		{[]string{"compare", file, file, "--format", "xml"}, `--format "xml": it is one of text, json, markdown`},
		{[]string{"compare", file, file, "--slower", "0.5"}, "--slower 0.5: it can be 1 to 1000"},
	} {
		var stdout, stderr bytes.Buffer
		results := filepath.Join(dir, "results")
		args := append([]string{"suite"}, c.args...)
		if len(c.args) > 0 && c.args[0] == file {
			args = append(args, "--results", results)
		}
		code := execute(args, &stdout, &stderr)
		if code != 125 || !strings.Contains(stderr.String(), c.want) || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%q: exit code %d, %s, want %s", c.args, code, stderr.Bytes(), c.want)
		}
		if _, err := os.Stat(results); err == nil {
			t.Errorf("%q: there is a results folder", c.args)
		}
	}
}
