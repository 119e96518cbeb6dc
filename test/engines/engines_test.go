// Package engines runs what configs has for the engines that run suites on many machines: Slurm itself, GitLab's jobs
// as gitlab-ci-local does, and the scripts of GitHub's and Kubernetes's jobs in what these give them. Shards that are
// merged have to be what the suite is in one piece.
package engines

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// hangLimit is when a test gives up on a process or on what it waits for.
const hangLimit = 2 * time.Minute

// shards is how many the files divide a suite into.
const shards = 4

// hangs is a suite with a run for each shard that ends by a signal alone, for which its guest waits. Some engines send
// it to all processes, so it has guests on the emulator, which is one.
const hangs = `name: hangs
defaults: {memory: 64M, shm-size: 64K, arch: x86_64, timeout: 5m, grace: 20s}
runs:
- {name: hangs, scenario: graceful, matrix: {accel: [auto, emulator], cpus: [1, 2]}}
`

// built is what all tests use.
var built struct {
	sync.Mutex
	dir   string // of a folder bin with the program
	whole string // the results of configs/suite.yaml in one piece
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" && os.Getenv(inside) == "" { // there it is the parent's
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// configs is the path of a file of configs.
func configs(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "configs", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// bin returns a folder with the program, which a user has on PATH. The suite that the tests run has guests of both
// architectures.
func bin(t *testing.T) string {
	t.Helper()
	testenv.EmulatorOf(t, "arm64")
	testenv.EmulatorOf(t, "x86_64")
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "engines")
		if err != nil {
			t.Fatal(err)
		}
		built.dir = dir
	}
	dir := filepath.Join(built.dir, "bin")
	if _, err := os.Stat(dir); err != nil {
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "ktstr-vmm"), "../../cmd/ktstr-vmm").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return dir
}

// environ is the test's environment, with the program on PATH and more variables.
func environ(t *testing.T, more ...string) []string {
	t.Helper()
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KTSTR_VMM_") })
	env = append(env, "PATH="+bin(t)+":"+os.Getenv("PATH"), "KTSTR_VMM_EXPORTER=none")
	return append(env, more...)
}

// whole returns the results folder of configs/suite.yaml in one piece.
func whole(t *testing.T) string {
	t.Helper()
	env := environ(t)
	built.Lock()
	defer built.Unlock()
	if built.whole == "" {
		dir := filepath.Join(built.dir, "whole")
		c := command(t, env, t.TempDir(), "ktstr-vmm", "suite", configs(t, "suite.yaml"), "--results", dir)
		if out, code := c.end(t); code != 0 {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		built.whole = dir
	}
	return built.whole
}

// process is one whose output is kept.
type process struct {
	*exec.Cmd
	out bytes.Buffer
}

// command starts a process that does not outlive the test.
func command(t *testing.T, env []string, dir, name string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(name, args...)}
	for _, v := range slices.Backward(env) { // as the process will see it
		if path, ok := strings.CutPrefix(v, "PATH="); ok && !strings.Contains(name, "/") {
			p.Path, p.Err = lookIn(path, name)
			break
		}
	}
	p.Env, p.Dir = env, dir
	p.Stdout, p.Stderr = &p.out, &p.out
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.WaitDelay = time.Second // for what holds the output open
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL) // with what it started; runs end with their suite
		if p.ProcessState == nil {
			_ = p.Wait()
		}
	})
	return p
}

// lookIn looks for a program in a PATH.
func lookIn(path, name string) (string, error) {
	for dir := range strings.SplitSeq(path, ":") {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("%w: %s in %s", exec.ErrNotFound, name, path)
}

// end waits for a process's end, and returns its output and its exit code.
func (p *process) end(t *testing.T) (out string, code int) {
	t.Helper()
	timer := time.AfterFunc(hangLimit, func() { _ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL) })
	defer timer.Stop()
	err := p.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s", p.Args, err, p.out.String())
	}
	return p.out.String(), p.ProcessState.ExitCode()
}

// eventually waits until a condition holds; what says what it is.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for limit := time.Now().Add(hangLimit); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("after %v it is still not so that %s", hangLimit, what)
		}
	}
}

// report reads the report in a results folder.
func report(t *testing.T, dir string) *suite.Report {
	t.Helper()
	r, err := suite.ReadReport(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// endings say how a suite's runs ended, a line for each.
func endings(r *suite.Report) string {
	var b strings.Builder
	for _, x := range r.Runs {
		code := "-"
		if x.ExitCode != nil {
			code = fmt.Sprint(*x.ExitCode)
		}
		fmt.Fprintln(&b, x.Name, x.Status, x.Outcome, code)
	}
	return b.String()
}

// equalsWhole checks that the shards in these folders have each run of configs/suite.yaml once, and none of them too
// many; and that merged, a results folder, is that suite.
func equalsWhole(t *testing.T, merged string, folders ...string) {
	t.Helper()
	all := report(t, whole(t))
	got := report(t, merged)
	if a, b := endings(all), endings(got); a != b || got.Shard != nil || !slices.Equal(got.Names, all.Names) {
		t.Errorf("the suite is\n%sand its shards, merged, are\n%s", a, b)
	}
	if len(folders) != shards {
		t.Fatalf("%d shards, want %d", len(folders), shards)
	}
	seen := map[string]int{}
	for _, dir := range folders {
		r := report(t, dir)
		if want := len(all.Runs) / shards; len(r.Runs) != want {
			t.Errorf("shard %v has %d runs, want %d", r.Shard, len(r.Runs), want)
		}
		for _, x := range r.Runs {
			seen[x.Name]++
			if _, err := os.Stat(filepath.Join(merged, x.Folder, "report.json")); err != nil {
				t.Error(err)
			}
		}
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s was run %d times", name, n)
		}
	}
	if len(seen) != len(all.Names) {
		t.Errorf("%v were run, want %v", slices.Sorted(maps.Keys(seen)), all.Names)
	}
}

// folders are those that match a pattern, at least one.
func folders(t *testing.T, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(pattern)
	if err != nil || len(all) == 0 {
		t.Fatalf("%v, nothing is like %s", err, pattern)
	}
	return all
}

// write writes a file in a folder of its own, and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// running counts the guests that have sent a message, in results folders like this pattern.
func running(t *testing.T, pattern string) (n int) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(pattern, "runs", "*", "stdout.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte("SCST")) {
			n++
		}
	}
	return n
}

// interrupted checks that all runs of a suite were, and that each has its report. Guests that ran had their grace.
func interrupted(t *testing.T, dir string, ran bool) {
	t.Helper()
	for _, x := range report(t, dir).Runs {
		text, err := os.ReadFile(filepath.Join(dir, x.Folder, "report.json"))
		if err != nil || x.Status != suite.Skipped || !bytes.Contains(text, []byte(`"outcome": "interrupted"`)) ||
			ran && !bytes.Contains(text, []byte(`"guest_exit_code": 0`)) {
			t.Errorf("%s: %s, %s, %v\n%s", x.Name, x.Status, x.Reason, err, text)
		}
	}
}
