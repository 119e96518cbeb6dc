//go:build linuxbed

package linux

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// bootLimit is how long a guest is given to start its command in tests that wait for a deadline: on an emulated
// processor that has other guests, half a minute may not be enough.
func bootLimit() time.Duration {
	if testing.Short() {
		return 40 * time.Second
	}
	return 30 * time.Second
}

// What a command wrote before the deadline is all there, and nothing waits for one that does not read an endless stdin.
// Asked to stop at the soft deadline, a command gets a TERM and its last words are read. Both are waited for at once.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	const grace = 20 * time.Second
	endless := &repeated{text: bytesOf(3), left: 1 << 40}
	hard := vmmStart(t, t.TempDir(), endless, "--timeout", bootLimit().String(), "--grace", "0s", "--",
		"busybox", "sh", "-c", "trap '' TERM; echo before; busybox sleep 1000; echo after")
	soft := vmmStart(t, t.TempDir(), nil, "--timeout", (bootLimit() + grace).String(), "--grace", grace.String(), "--",
		"busybox", "sh", "-c", "trap 'echo bye; exit 5' TERM; while :; do busybox sleep 0.1; done")
	for _, of := range []struct {
		ended        ended
		stdout, says string
	}{
		{hard(), "before\n", "timeout: the hard deadline passed"},
		{soft(), "bye\n", "the guest exited with code 5"},
	} {
		if e := of.ended; e.code != 124 || string(e.stdout) != of.stdout || !strings.Contains(string(e.stderr), of.says) {
			t.Errorf("exit code %d, stdout %q, stderr %s; want 124, %q, %q", e.code, e.stdout, e.stderr, of.stdout, of.says)
		}
	}
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
			e, r := reported(t, append(flags, "--", "busybox", "sh", "-c",
				"echo c > /proc/sysrq-trigger; busybox sleep 1000")...)
			if e.code != 122 || r.Outcome != "crash" || r.Crash == nil ||
				!strings.Contains(r.Crash.Message, "Kernel panic - not syncing: sysrq triggered crash") ||
				!strings.Contains(string(e.stderr), "Kernel panic - not syncing") {
				t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
			}
		})
	}
}

// scheduler is a script that stands for a scheduler that dies after a second.
func scheduler(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "scheduler")
	if err := os.WriteFile(path, []byte("busybox sleep 1; exit 42\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
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
			if e.code != 121 || r.Outcome != "scheduler_exit" || r.SchedulerExit == nil || r.SchedulerExit.Code == nil ||
				*r.SchedulerExit.Code != tc.code {
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

// Whatever eats the guest up, the run ends with a name.
func TestHogs(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--memory", "256M", "--", "busybox", "sh", "-c", "busybox tail /dev/zero; echo $?")
		if e.code != 0 || string(e.stdout) != "137\n" || r.Outcome != "exited" ||
			!strings.Contains(r.ConsoleTail, "Out of memory") {
			t.Errorf("exit code %d, stdout %q, %s\n%+v", e.code, e.stdout, e.stderr, r)
		}
	})
	t.Run("forks", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--memory", "256M", "--timeout", "40s", "--", "busybox", "sh", "-c",
			"bomb() { bomb | bomb & }; bomb; exec busybox sleep 1000")
		// Which of them it is depends on whom the kernel takes for the culprit.
		bounded := e.code == 124 && r.Outcome == "timeout" || e.code == 122 && r.Outcome == "crash" ||
			e.code == 137 && r.Outcome == "exited" && strings.Contains(string(e.stderr), "ran out of memory")
		if e.took > 2*time.Minute || !bounded {
			t.Errorf("after %v exit code %d, stdout %q, %s\n%+v", e.took, e.code, e.stdout, e.stderr, r)
		}
	})
}

// The host's control bytes: a dump is on the console, a stall is a file in the guest. Meanwhile its processor is mostly
// idle, as its registers say.
func TestControlBytes(t *testing.T) {
	t.Parallel()
	guest := linux.Guest{Kernel: kernel, Sysroot: sysroot, Command: []string{"busybox", "sh", "-c",
		"busybox uname -r; until test -e /tmp/ktstr_stall; do busybox sleep 0.1; done; echo stalled"}}
	cfg, files, err := guest.Config()
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	cfg.Backend, _ = accel.Choose(accel.Mode(mode), accel.Guest{Board: cfg.Kernel.Board(), Linux: true})
	var mu sync.Mutex
	var stdout []byte
	started := make(chan struct{})
	var live *run.Live
	idle := ""
	r := run.Run(context.Background(), run.Config{
		VM:      cfg,
		Timeout: 3 * time.Minute,
		Symbols: guest.Symbols,
		OnLive:  func(l *run.Live) { live = l },
		OnMessage: func(_ time.Duration, m shm.Message) monitor.Verdict {
			mu.Lock()
			defer mu.Unlock()
			switch m.Type {
			case shm.ScenarioStart:
				close(started)
			case shm.Stdout:
				stdout = append(stdout, m.Payload...)
			}
			return monitor.Continue
		},
		Drive: func(ctx context.Context, c shm.Control) error {
			select {
			case <-ctx.Done():
				return nil
			case <-started:
			}
			c.RequestDump()
			defer c.RequestStall()
			for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
				var err error
				if idle, err = idlesAt(ctx, live); err != nil {
					return err
				}
				mu.Lock()
				release, _, whole := strings.Cut(string(stdout), "\n")
				mu.Unlock()
				if idle != "" || whole && unreadable(release) {
					break
				}
			}
			return nil
		},
	})
	mu.Lock()
	defer mu.Unlock()
	release, said, _ := strings.Cut(string(stdout), "\n")
	if idle == "" && !unreadable(release) {
		t.Error("no processor was ever idle")
	}
	if r.ExitCode != 0 || said != "stalled\n" || !bytes.Contains(r.Console, []byte("sysrq: ")) {
		t.Errorf("%v, exit code %d, stdout %q, console %s", r.Outcome, r.ExitCode, stdout, r.Console)
	}
}

// idlesAt returns where one of a guest's processors is idle, by the name of the kernel's function; "" if none is.
func idlesAt(ctx context.Context, l *run.Live) (string, error) {
	all, name, err := l.Registers(ctx)
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if r.Err != nil {
			return "", r.Err
		}
		if at := name(r.PC); strings.Contains(at, "idle") || strings.Contains(at, "halt") {
			return at, nil
		}
	}
	return "", nil
}
