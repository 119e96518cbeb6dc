//go:build linuxbed

// Package linux is the suite of Linux guests, of one kernel on one back end: the environment names
// them and the program. "make linux-test" runs it on each that there is.
package linux

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

var (
	kernel = os.Getenv("KTSTR_TEST_KERNEL")
	vmm    = os.Getenv("KTSTR_TEST_VMM")
	mode   = cmp.Or(os.Getenv("KTSTR_TEST_ACCEL"), "auto")
	arch   = cmp.Or(os.Getenv("KTSTR_TEST_ARCH"), "x86_64")
	// sysroot is where guests of another architecture than this host's have their programs from, but for this
	// suite's own, program, and for ours, guestVMM, which are built for theirs.
	sysroot  = os.Getenv("KTSTR_TEST_SYSROOT")
	program  = cmp.Or(os.Getenv("KTSTR_TEST_HELPER"), os.Args[0])
	guestVMM = cmp.Or(os.Getenv("KTSTR_TEST_GUEST_VMM"), vmm)
	// Of a kernel with sched_ext: the examples.
	fifo     = os.Getenv("KTSTR_TEST_SCHEDULER")
	workload = os.Getenv("KTSTR_TEST_WORKLOAD")
	scxStats = os.Getenv("KTSTR_TEST_SCX_STATS")
	helper   = flag.String("helper", "", "what this binary does inside a guest")
	written  = flag.Int("written", bulk, "how many bytes bulk writes to stdout, and again to stderr")
	messages = flag.String("messages", "0", "how many messages write-ring writes")
)

// bulk is how much a helper writes at most to stdout, and again to stderr.
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
			os.Stderr.Write(bytesOf(2)[:*written])
		}()
		os.Stdout.Write(bytesOf(1)[:*written])
		<-done
	case "clock":
		fail(reportClock())
	case "write-ring":
		fail(writeRing(*messages))
	case "copy-to-ring":
		fail(copyToRing())
	case "like-a-host":
		fail(likeAHost())
	default:
		fail(send(*helper))
	}
}

// fail ends a helper that could not do its part.
func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
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

// runArgs are the program's arguments for a run; flags can be given again, the last one counts.
func runArgs(args ...string) []string {
	run := []string{"run", "--accel", mode, "--kernel", kernel, "--timeout", "3m"}
	if sysroot != "" {
		run = append(run, "--sysroot", sysroot)
	}
	return append(run, args...)
}

// busybox is its path in a guest.
func busybox(t *testing.T) string {
	t.Helper()
	if sysroot != "" {
		return "/bin/busybox"
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// vmmRun runs a command in a guest: flags, then "--" and the command.
func vmmRun(t *testing.T, args ...string) ended {
	t.Helper()
	return vmmRunIn(t, t.TempDir(), args...)
}

// vmmRunIn does so in a folder.
func vmmRunIn(t *testing.T, dir string, args ...string) ended {
	t.Helper()
	return vmmStart(t, dir, nil, args...)()
}

// vmmStart starts a command in a guest, with what it can read from its stdin, and returns what waits for its end.
func vmmStart(t *testing.T, dir string, stdin io.Reader, args ...string) (wait func() ended) {
	t.Helper()
	cmd := exec.Command(vmm, runArgs(args...)...)
	cmd.Dir, cmd.Stdin = dir, stdin
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() ended {
		t.Helper()
		err := cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return ended{stdout.Bytes(), stderr.Bytes(), cmd.ProcessState.ExitCode(), time.Since(start)}
	}
}

func (e ended) want(t *testing.T, code int, stdout string) {
	t.Helper()
	if e.code != code || string(e.stdout) != stdout {
		t.Errorf("exit code %d, stdout %.200q, stderr %.2000s; want %d, %q", e.code, e.stdout, e.stderr, code, stdout)
	}
}

// report is what the tests look at of a JSON report.
type report struct {
	Outcome   string
	Reason    string
	Scheduler *struct {
		States []struct {
			State, Ops, Reason string
			Guest              float64 `json:"guest_seconds"`
			Noticed            float64 `json:"kernel_seconds"`
			PID                int
			EnableSeq          int  `json:"enable_seq"`
			SwitchAll          bool `json:"switch_all"`
		}
		OutputTail string `json:"output_tail"`
		Dump       string
	}
	DumpRequests  []struct{ Why string } `json:"dump_requests"`
	GuestExitCode *int32                 `json:"guest_exit_code"`
	Ring          struct {
		ByType map[string]int `json:"by_type"`
		Drops  int
	}
	Doorbell      struct{ Rings, Drains int }
	SchedulerExit *struct{ Code *int32 } `json:"scheduler_exit"`
	Crash         *struct{ Message string }
	Stimuli       []shm.StimulusEvent
	Results       []any
	ConsoleTail   string `json:"console_tail"`
	CPUs          cpus
}

// reported runs a command in a guest and reads the run's report.
func reported(t *testing.T, args ...string) (ended, report) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.json")
	e := vmmRun(t, append([]string{"--report", path, "--report-format", "json"}, args...)...)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; exit code %d, %s", err, e.code, e.stderr)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return e, r
}
