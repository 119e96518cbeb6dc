//go:build linuxbed

package linux

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/linux"
)

// cpus is what a report says of the guest's CPUs.
type cpus struct {
	Looks []look
	Error string
}

type look struct {
	When string
	CPUs []cpu
}

type cpu struct {
	Index     int
	Online    bool
	Idle      bool
	NrRunning int     `json:"nr_running"`
	Clock     float64 `json:"clock_seconds"`
	PID       int
	Comm      string
	SCX       *struct {
		Flags     string
		NrRunning int `json:"nr_running"`
	}
}

// last returns the last look, and checks that it can be true.
func (c cpus) last(t *testing.T, count int) []cpu {
	t.Helper()
	if c.Error != "" || len(c.Looks) == 0 {
		t.Fatalf("no look: %+v", c)
	}
	last := c.Looks[len(c.Looks)-1]
	if last.When != "stopped" || len(last.CPUs) != count {
		t.Fatalf("%+v, want %d CPUs when it had stopped", last, count)
	}
	for i, c := range last.CPUs {
		if c.Index != i || !c.Online || c.Clock <= 0 || !c.Idle && (c.PID <= 0 || c.Comm == "") {
			t.Errorf("%+v can't be", c)
		}
	}
	return last.CPUs
}

// runsBusybox reports whether a CPU does.
func runsBusybox(c cpu) bool { return c.Comm == "busybox" && c.PID > 1 && !c.Idle }

// unreadable reports whether nothing can be known of a kernel from outside: Debian's 6.1 for arm64 names no data in its
// symbol table (CONFIG_KALLSYMS_ALL), and comes without its vmlinux.
func unreadable(release string) bool { return arch == "arm64" && strings.HasPrefix(release, "6.1.") }

// stoppedBusy runs three processes that are busy on two CPUs, stops the machine without asking the guest, and returns
// what the guest's kernel is called, the report, and what was said on stderr.
func stoppedBusy(t *testing.T, flags ...string) (release string, r report, said string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.json")
	const busy = " sh -c 'echo busy; while :; do :; done'"
	args := append(flags, "--grace", "0s", "--cpus", "2", "--report", path, "--report-format", "json", "--",
		"busybox", "sh", "-c", "busybox uname -r; for i in 1 2 3; do "+busybox(t)+busy+" & done; wait")
	cmd := exec.Command(vmm, runArgs(args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for s := bufio.NewScanner(stdout); s.Scan(); {
		if lines = append(lines, s.Text()); len(lines) == 4 { // all of them are busy
			time.Sleep(time.Second) // the agent is, too, while it passes that on
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 143 || len(lines) != 4 {
		t.Fatalf("exit code %d, %q, %s", cmd.ProcessState.ExitCode(), lines, stderr.Bytes())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return lines[0], r, stderr.String()
}

// A guest that is busy and is stopped: what its CPUs were doing is known without its help. Debian's kernels have no
// sched_ext.
func TestBusyGuestIsLookedAt(t *testing.T) {
	t.Parallel()
	release, r, said := stoppedBusy(t)
	if unreadable(release) {
		if len(r.CPUs.Looks) > 0 || !strings.Contains(r.CPUs.Error, "CONFIG_KALLSYMS_ALL") {
			t.Errorf("%+v", r.CPUs)
		}
		return
	}
	cpus, runnable := r.CPUs.last(t, 2), 0
	for _, c := range cpus {
		if runnable += c.NrRunning; c.SCX != nil {
			t.Errorf("%s says of sched_ext %+v", release, c.SCX)
		}
	}
	if runnable < 1 || !slices.ContainsFunc(cpus, runsBusybox) {
		t.Errorf("three processes are busy: %+v", cpus)
	}
	if !strings.Contains(said, "what each of the guest's CPUs was doing when it had stopped") ||
		!strings.Contains(said, "busybox, process ") {
		t.Errorf("not shown: %s", said)
	}
}

// Under a scheduler of sched_ext, each CPU's tasks are the scheduler's.
func TestSchedExtBusyGuestIsLookedAt(t *testing.T) {
	t.Parallel()
	_, r, said := stoppedBusy(t, "--scheduler-wait", "1m", "--scheduler", fifo)
	tasks := 0
	for _, c := range r.CPUs.last(t, 2) {
		if c.SCX == nil {
			t.Fatalf("nothing of sched_ext: %+v", c)
		}
		flags, err := strconv.ParseUint(c.SCX.Flags, 0, 32)
		const online = 1 << 0 // SCX_RQ_ONLINE
		if err != nil || flags&online == 0 {
			t.Errorf("%+v, %v", c.SCX, err)
		}
		tasks += c.SCX.NrRunning
	}
	if tasks < 1 { // each CPU may have been about to take one from elsewhere
		t.Errorf("three processes are busy: %+v", r.CPUs)
	}
	if !strings.Contains(said, "; sched_ext: ") {
		t.Errorf("not shown: %s", said)
	}
}

// A kernel that has panicked, and does nothing any more, can be asked which process brought it down, also if it is
// mapped at random addresses. On KVM it would lie at one, too, and then it is found by a vmlinux only.
func TestPanickedGuestIsLookedAt(t *testing.T) {
	t.Parallel()
	kernels := map[string][]string{"in its place": {"--append", "panic=0"}}
	if mode == "emulator" {
		cmdline := strings.Replace(linux.Cmdline(arch), "nokaslr", "", 1) + " panic=0"
		kernels["randomized"] = []string{"--cmdline-only", cmdline}
	}
	for name, flags := range kernels {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, r := reported(t, append(flags, "--cpus", "2", "--", "busybox", "sh", "-c",
				"exec >/proc/sysrq-trigger; echo c")...)
			if e.code != 122 {
				t.Fatalf("exit code %d, %s", e.code, e.stderr)
			}
			if arch == "arm64" && strings.Contains(r.CPUs.Error, "CONFIG_KALLSYMS_ALL") {
				return // TestBusyGuestIsLookedAt knows of which kernel
			}
			if cpus := r.CPUs.last(t, 2); !slices.ContainsFunc(cpus, runsBusybox) {
				t.Errorf("no CPU runs what has brought it down: %+v", cpus)
			}
		})
	}
}
