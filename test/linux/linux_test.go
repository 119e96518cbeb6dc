//go:build linuxbed

// Package linux is the suite of Linux guests. It runs where KVM runs Linux at a usable speed, which
// "make linux-test" sees to; the kernel under test and the program are named by the environment.
package linux

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/ktstr"
)

var (
	kernel = os.Getenv("KTSTR_TEST_KERNEL")
	vmm    = os.Getenv("KTSTR_TEST_VMM")
	helper = flag.String("helper", "", "what this binary does inside a guest")
)

// bulk is how much a helper writes to stdout, and again to stderr.
const bulk = 10 << 20

func TestMain(m *testing.M) {
	flag.Parse()
	switch *helper {
	case "":
		os.Exit(m.Run())
	case "bulk":
		done := make(chan struct{})
		go func() {
			defer close(done)
			os.Stderr.Write(bytesOf(2))
		}()
		os.Stdout.Write(bytesOf(1))
		<-done
	default:
		if err := send(*helper); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// send sends messages by the package for tests.
func send(what string) error {
	h, err := ktstr.Connect()
	if err != nil {
		return err
	}
	defer h.Close()
	switch what {
	case "crash":
		return h.Crash("the test says so")
	case "scheduler-exit":
		return h.SchedulerExit(-7)
	case "messages":
		return errors.Join(
			h.ScenarioStart(),
			h.Stimulus(ktstr.Stimulus{ElapsedMS: 5, StepIndex: 1, OpCount: 2, TotalIterations: 1 << 40}),
			h.Result(map[string]any{"name": "a", "passed": true}),
			h.Metrics(map[string]int{"latency_us": 12}),
			h.RawOutput([]string{"raw"}),
			h.ScenarioEnd(),
			h.Exit(9),
		)
	}
	return fmt.Errorf("no helper %q", what)
}

// bytesOf are bytes that look like none, the same on both sides.
func bytesOf(seed uint64) []byte {
	b := make([]byte, bulk)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

type ended struct {
	stdout, stderr []byte
	code           int
	took           time.Duration
}

// vmmRun runs a command in a guest: flags, then "--" and the command.
func vmmRun(t *testing.T, args ...string) ended {
	t.Helper()
	return vmmRunIn(t, t.TempDir(), args...)
}

// vmmRunIn does so in a folder.
func vmmRunIn(t *testing.T, dir string, args ...string) ended {
	t.Helper()
	cmd := exec.Command(vmm, append([]string{"run", "--kernel", kernel, "--timeout", "3m"}, args...)...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ended{stdout.Bytes(), stderr.Bytes(), cmd.ProcessState.ExitCode(), time.Since(start)}
}

func (e ended) want(t *testing.T, code int, stdout string) {
	t.Helper()
	if e.code != code || string(e.stdout) != stdout {
		t.Errorf("exit code %d, stdout %.200q, stderr %.2000s; want %d, %q", e.code, e.stdout, e.stderr, code, stdout)
	}
}

func TestExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		args   []string
		code   int
		stderr string
	}{
		"success":        {[]string{"busybox", "true"}, 0, ""},
		"failure":        {[]string{"busybox", "sh", "-c", "exit 3"}, 3, ""},
		"not executable": {[]string{kernel}, 126, "ktstr-vmm: fork/exec " + kernel + ": permission denied\n"},
		"not found":      {[]string{"/no/such/program"}, 127, "ktstr-vmm: fork/exec /no/such/program: no such file or directory\n"},
		"killed":         {[]string{"busybox", "sh", "-c", "kill -TERM $$"}, 143, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := vmmRun(t, append([]string{"--"}, tc.args...)...)
			e.want(t, tc.code, "")
			if string(e.stderr) != tc.stderr {
				t.Errorf("stderr %q, want %q", e.stderr, tc.stderr)
			}
		})
	}
}

// On the largest ring; the smallest one is TestSlowReader's.
func TestOutputIsExact(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--shm-size", "1G", "--memory", "1536M", "--", os.Args[0], "-helper=bulk")
	if e.code != 0 || sha256.Sum256(e.stdout) != sha256.Sum256(bytesOf(1)) || sha256.Sum256(e.stderr) != sha256.Sum256(bytesOf(2)) {
		t.Errorf("exit code %d, %d bytes of stdout, %d of stderr; want %d each, and the same", e.code, len(e.stdout), len(e.stderr), bulk)
	}
}

// sleeper is a reader that takes its time before it takes anything.
type sleeper struct {
	bytes.Buffer
	slept bool
}

func (s *sleeper) Write(p []byte) (int, error) {
	if !s.slept {
		time.Sleep(3 * time.Second)
		s.slept = true
	}
	return s.Buffer.Write(p)
}

// A slow reader of our output slows the command down; what the command had written when it ended
// still comes, all of it.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(vmm, "run", "--kernel", kernel, "--timeout", "3m", "--shm-size", "8K", "--", os.Args[0], "-helper=bulk")
	var stdout, stderr sleeper
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || sha256.Sum256(stdout.Bytes()) != sha256.Sum256(bytesOf(1)) || sha256.Sum256(stderr.Bytes()) != sha256.Sum256(bytesOf(2)) {
		t.Errorf("%v, %d bytes of stdout, %d of stderr; want %d each, and the same", err, stdout.Len(), stderr.Len(), bulk)
	}
}

// What a command wrote before the deadline is all there.
func TestDeadline(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--timeout", "30s", "--grace", "0s", "--", "busybox", "sh", "-c", "trap '' TERM; echo before; busybox sleep 1000; echo after")
	if e.code != 124 || string(e.stdout) != "before\n" || !strings.Contains(string(e.stderr), "timeout: the hard deadline passed") {
		t.Errorf("exit code %d, stdout %q, stderr %s", e.code, e.stdout, e.stderr)
	}
}

// Asked to stop at the soft deadline, the command gets a TERM and its last words are read.
func TestSoftDeadline(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--timeout", "40s", "--grace", "20s", "--", "busybox", "sh", "-c", "trap 'echo bye; exit 5' TERM; while :; do busybox sleep 0.1; done")
	if e.code != 124 || string(e.stdout) != "bye\n" || !strings.Contains(string(e.stderr), "the guest exited with code 5") {
		t.Errorf("exit code %d, stdout %q, stderr %s", e.code, e.stdout, e.stderr)
	}
}

func TestMemoryAboveFourGiB(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--memory", "5G", "--", "busybox", "grep", "MemTotal", "/proc/meminfo")
	var kib int
	if _, err := fmt.Sscanf(string(e.stdout), "MemTotal: %d kB", &kib); err != nil || e.code != 0 || kib < 4800<<10 {
		t.Errorf("exit code %d, %q, %s", e.code, e.stdout, e.stderr)
	}
}

func TestDynamicallyLinkedCommand(t *testing.T) {
	t.Parallel()
	vmmRun(t, "--env", "GREETING=hello world", "--", "/usr/bin/env", "-u", "TERM").want(t, 0,
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\nGREETING=hello world\n"+
			"KTSTR_SOCKET=/run/ktstr/socket\nKTSTR_MESSAGES=/run/ktstr/messages\n")
}

func TestScriptAndIncludedTree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for path, mode := range map[string]os.FileMode{"tree/a/file": 0o640, "tree/b": 0o755} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content of "+filepath.Base(path)+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a/file", filepath.Join(dir, "tree", "link")); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/busybox sh\nbusybox cat /data/link\nbusybox stat -c '%a %F' /data/a/file /data/b /data/link\necho \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	vmmRun(t, "--include", filepath.Join(dir, "tree")+":/data", "--", script, "an argument").want(t, 0,
		"content of file\n640 regular file\n755 regular file\n777 symbolic link\nan argument\n")
}

// What programs expect of a Linux system is there and can be written to.
func TestGuestEnvironment(t *testing.T) {
	t.Parallel()
	vmmRun(t, "--", "busybox", "sh", "-ec", `
		for d in /tmp /run /dev/shm; do echo x > $d/file; done
		test -c /dev/null; test -e /proc/self/status; test -d /sys/kernel; test -e /sys/fs/cgroup/cgroup.controllers
		test -d /sys/kernel/tracing/events; busybox grep -q ' /sys/fs/bpf bpf ' /proc/mounts; echo x | busybox cat /dev/stdin > /dev/null
		test "$(busybox id -u)" = 0; echo fine`).want(t, 0, "fine\n")
}

// A kernel panic is a crash, with the panic's text.
func TestKernelPanic(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"resets":        nil,
		"waits forever": {"--append", "panic=0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, r := reported(t, append(flags, "--", "busybox", "sh", "-c", "echo c > /proc/sysrq-trigger; busybox sleep 1000")...)
			if e.code != 122 || r.Outcome != "crash" || r.Crash == nil || !strings.Contains(r.Crash.Message, "Kernel panic - not syncing: sysrq triggered crash") ||
				!strings.Contains(string(e.stderr), "Kernel panic - not syncing") {
				t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
			}
		})
	}
}

// The scheduler under test ends while the command runs: the run ends, long before the command.
func TestSchedulerExit(t *testing.T) {
	t.Parallel()
	script := scheduler(t)
	for name, tc := range map[string]struct {
		scheduler string
		code      int32
	}{
		"after a second": {"busybox sh " + script, 42},
		"not there":      {"/no/such/scheduler", 127},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, r := reported(t, "--include", script, "--scheduler", tc.scheduler, "--", "busybox", "sleep", "60")
			if e.code != 121 || r.Outcome != "scheduler_exit" || r.SchedulerExit == nil || r.SchedulerExit.Code == nil || *r.SchedulerExit.Code != tc.code {
				t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
			}
			if e.took > 50*time.Second {
				t.Errorf("the run took %v, as long as the command", e.took)
			}
		})
	}
}

// A guest that resets without a word.
func TestReset(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--", "busybox", "reboot", "-f")
	if e.code != 120 || !strings.Contains(string(e.stderr), "no_verdict") {
		t.Errorf("exit code %d, %s", e.code, e.stderr)
	}
}

func TestRefusedKernels(t *testing.T) {
	good, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	arm := make([]byte, 4096)
	copy(arm[0x38:], "ARMd")
	for name, tc := range map[string]struct {
		content []byte
		says    string
	}{
		"script": {[]byte("#!/bin/sh\n"), "neither a bzImage nor an ELF file"},
		"cut":    {good[:len(good)/2], "cut short"},
		"header": {good[:0x210], "cut short"},
		"arm64":  {arm, "arm64"},
	} {
		path := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(path, tc.content, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(vmm, "run", "--kernel", path, "--", "busybox", "true").CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 125 || !strings.Contains(string(out), tc.says) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v, %s", name, err, out)
		}
	}
	for flag, tc := range map[string]struct{ value, says string }{
		"--memory": {"24M", "try more --memory"},
		"--append": {strings.Repeat("x", 2048), "this kernel takes at most 2047"},
	} {
		out, err := exec.Command(vmm, "run", "--kernel", kernel, flag, tc.value, "--", "busybox", "true").CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 125 || !strings.Contains(string(out), tc.says) {
			t.Errorf("%s: %v, %s", flag, err, out)
		}
	}
}
