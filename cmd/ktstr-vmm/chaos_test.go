package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// reader is who reads a pipe of the program's.
type reader string

const (
	fast      reader = "fast"
	trickling reader = "trickling"
	stuck     reader = "stuck"
	gone      reader = "gone"
)

var readers = []reader{fast, trickling, stuck, gone}

// pipe returns a pipe's end for the program to write to, which a reader of a kind reads until the test ends.
func pipe(t *testing.T, kind reader) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	switch kind {
	case gone:
		r.Close()
	case stuck:
		fill(t, w)
		t.Cleanup(func() { r.Close() })
	default:
		var reading sync.WaitGroup
		reading.Go(func() {
			defer r.Close()
			if kind == fast {
				_, _ = io.Copy(io.Discard, r)
				return
			}
			for buf := make([]byte, 16); ; time.Sleep(time.Millisecond) {
				if _, err := r.Read(buf); err != nil {
					return
				}
			}
		})
		t.Cleanup(func() {
			r.SetReadDeadline(time.Now())
			reading.Wait()
		})
	}
	return w
}

// fill makes a pipe full, so that the first byte that is written to it blocks, and returns what that took.
func fill(t *testing.T, w *os.File) (n int) {
	t.Helper()
	raw, err := w.SyscallConn() // Fd would make the file blocking
	if err != nil {
		t.Fatal(err)
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		for failure == nil {
			var wrote int
			if wrote, failure = syscall.Write(int(fd), make([]byte, 4096)); failure == nil {
				n += wrote
			}
		}
	})
	if err != nil || failure != syscall.EAGAIN {
		t.Fatal(err, failure)
	}
	return n
}

// A reader of stderr that is stuck holds up neither a usage error, nor a run, nor its last words.
func TestStuckStderr(t *testing.T) {
	t.Parallel()
	path := program(t)
	b := testenv.Backend(t)
	for want, args := range map[int][]string{
		125: {"demo", "--no-such-flag"},
		3:   {"demo", "--accel", b.Name(), "--scenario", "fail", "--report", "-", "--report-format", "json"},
	} {
		cmd := exec.Command(path, args...)
		stderr := pipe(t, stuck)
		cmd.Stderr = stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stderr.Close()
		if code := ends(t, cmd); code != want {
			t.Errorf("%v: exit code %d, want %d", args, code, want)
		}
	}
}

// A report or a console that nobody opens the other end of: deadlines and signals are seen all the same.
func TestPipesThatNobodyOpens(t *testing.T) {
	path := program(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, signal := range map[int]syscall.Signal{124: 0, 143: syscall.SIGTERM, 130: syscall.SIGINT} {
		timeout := "1h"
		if signal == 0 {
			timeout = "300ms"
		}
		cmd := exec.Command(path, "demo", "--scenario", "hang", "--timeout", timeout, "--report", fifo)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if signal != 0 {
			time.Sleep(300 * time.Millisecond) // before, the signal's default action would do
			cmd.Process.Signal(signal)
		}
		if code := ends(t, cmd); code != want {
			t.Errorf("%v: exit code %d, want %d", signal, code, want)
		}
	}
}

// A run that ended before there was a machine does not speak of a kernel that came somewhere.
func TestNoMachineYet(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t), "run", "--kernel", "/dev/null", "--report", fifo, "--timeout", "300ms", "--", "true")
	out, err := cmd.CombinedOutput()
	if text := string(out); cmd.ProcessState.ExitCode() != 124 || !strings.Contains(text, "was not built yet") ||
		strings.Contains(text, "had not started") {
		t.Errorf("%v: %s", err, text)
	}
}

// chaosRun is one run with whatever can be in its way.
type chaosRun struct {
	scenario       string
	stdout, stderr reader
	signal         syscall.Signal // 0: none
	after          time.Duration  // when it comes
	report         string
	format         string
}

const chaosTimeout = 2 * time.Second

var chaosScenarios = []string{
	"ok,step_ms=1", "fail", "sched-exit", "crash", "hang", "halt", "graceful", "silent", "triple-fault",
	"flood,count=20000", "overrun,count=20000",
	"hostile,lie=ahead", "hostile,lie=length,exit=7", "hostile,lie=header", "stall", "signals",
}

func newChaosRun(r *rand.Rand, dir, fifo string) chaosRun {
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	c := chaosRun{
		scenario: pick(chaosScenarios...),
		stdout:   readers[r.IntN(len(readers))],
		stderr:   readers[r.IntN(len(readers))],
		after:    time.Duration(r.IntN(1500)) * time.Millisecond,
		report:   pick("", "-", "/dev/full", "/dev/null", fifo, filepath.Join(dir, fmt.Sprintf("report-%d", r.IntN(1<<30)))),
		format:   pick("text", "json", "junit"),
	}
	if r.IntN(3) == 0 {
		c.signal = []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[r.IntN(2)]
	}
	return c
}

// Whatever the guest does, whoever reads the output, and whenever a signal comes: every run ends soon after its
// deadline with a code that it is known for, and leaves no process. The seed is in the log.
func TestChaos(t *testing.T) {
	path := program(t)
	seed := chaosSeed(t)
	leavesNothing(t)
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		runs := map[string]int{"kvm": 300, "emulator": 150}[m.Backend.Name()]
		atOnce := 20 * runtime.GOMAXPROCS(0) // most of them wait for their deadlines or readers
		if testing.Short() {                 // also in the bed, whose processors are slow
			runs, atOnce = runs/5, 12*runtime.GOMAXPROCS(0)
		}
		r := rand.New(rand.NewPCG(seed, 0))
		dir := t.TempDir()
		fifo := filepath.Join(dir, "fifo") // which nobody opens
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		slots := make(chan struct{}, atOnce)
		for i := range runs {
			c := newChaosRun(r, dir, fifo)
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				t.Run(fmt.Sprint(i), func(t *testing.T) { c.check(t, path, m) })
			})
		}
		running.Wait()
	})
}

// chaosSeed is of this moment, or the one that is given.
func chaosSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("KTSTR_CHAOS_SEED"); given != "" {
		if _, err := fmt.Sscan(given, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return seed
}

// leavesNothing checks that a test leaves no goroutine and no open file of this process behind.
func leavesNothing(t *testing.T) {
	t.Helper()
	pipe(t, gone).Close() // what the runtime needs for pipes is open from now on
	goroutines, before := goleak.IgnoreCurrent(), openFiles(t)
	t.Cleanup(func() {
		goleak.VerifyNone(t, goroutines)
		for file := range openFiles(t) {
			if !before[file] {
				t.Errorf("file %s is left open", file)
			}
		}
	})
}

// openFiles are this process's, by number and name.
func openFiles(t *testing.T) map[string]bool {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]bool{}
	for _, e := range entries {
		if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // that of dir itself is closed
			files[e.Name()+" "+name] = true
		}
	}
	return files
}

// check makes the run.
func (c chaosRun) check(t *testing.T, path string, m testenv.Machine) {
	args := []string{"demo", "--accel", m.Backend.Name(), "--arch", m.Arch, "--scenario", c.scenario,
		"--timeout", chaosTimeout.String(),
		"--grace", "500ms", "--memory", "32M", "--shm-size", "1M"}
	if c.report != "" {
		args = append(args, "--report", c.report, "--report-format", c.format)
	}
	cmd := exec.Command(path, args...)
	stdout, stderr := pipe(t, c.stdout), pipe(t, c.stderr)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Env = append(os.Environ(), mark+t.Name())
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	stderr.Close()
	if c.signal != 0 {
		timer := time.AfterFunc(c.after, func() { cmd.Process.Signal(c.signal) })
		defer timer.Stop()
	}
	code := ends(t, cmd)
	t.Logf("%+v: exit code %d after %v", c, code, time.Since(start).Round(time.Millisecond))
	known := []int{0, 3, 7, 120, 121, 122, 123, 124, 125, 130, 143}
	early := c.signal != 0 && code == -1 // before the program listens, a signal is what it always is
	if !slices.Contains(known, code) && !early {
		t.Errorf("%+v: exit code %d", c, code)
	}
	// What a run had begun to build when a signal came is the kernel's to end, a moment after the run.
	left := leftOf(t, t.Name())
	for end := time.Now().Add(hangLimit); left != "" && time.Now().Before(end); left = leftOf(t, t.Name()) {
		time.Sleep(10 * time.Millisecond)
	}
	if left != "" {
		t.Errorf("%+v: processes %s are left", c, left)
	}
}

// mark is in the environment of a run's processes.
const mark = "KTSTR_CHAOS_RUN="

// leftOf lists the processes of a run that are still there.
func leftOf(t *testing.T, run string) string {
	t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, path := range environs {
		text, _ := os.ReadFile(path) // it may have ended
		if slices.Contains(strings.Split(string(text), "\x00"), mark+run) {
			left = append(left, path)
		}
	}
	return strings.Join(left, " ")
}
