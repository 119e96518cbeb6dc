//go:build linuxbed

package linux

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// report is what the tests look at of a JSON report.
type report struct {
	Outcome       string
	GuestExitCode *int32 `json:"guest_exit_code"`
	Ring          struct {
		ByType map[string]int `json:"by_type"`
		Drops  int
	}
	SchedulerExit *struct{ Code *int32 } `json:"scheduler_exit"`
	Crash         *struct{ Message string }
	Stimuli       []shm.StimulusEvent
	Results       []any
	ConsoleTail   string `json:"console_tail"`
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

// scheduler is a script that stands for a scheduler that dies after a second.
func scheduler(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "scheduler")
	if err := os.WriteFile(path, []byte("busybox sleep 1; exit 42\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Linux brings up all processors, as cores of one package.
func TestProcessors(t *testing.T) {
	t.Parallel()
	vmmRun(t, "--cpus", "2", "--", "busybox", "sh", "-c", `
		busybox nproc
		cd /sys/devices/system/cpu; busybox cat online cpu0/topology/core_id cpu1/topology/core_id cpu0/topology/package_cpus_list
		busybox taskset 2 busybox echo on the second`).want(t, 0, "2\n0-1\n0\n1\n0-1\non the second\n")
}

// Each type that the package for tests can send is in the report, and the agent's two around them.
func TestMessages(t *testing.T) {
	t.Parallel()
	t.Run("all that end nothing, and EXIT", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", os.Args[0], "-helper=messages")
		if e.code != 9 || r.Outcome != "exited" || r.GuestExitCode == nil || *r.GuestExitCode != 9 {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
		for _, typ := range []string{"STIM", "SCST", "SCEN", "EXIT", "TEST", "PMET", "RAWO"} {
			if r.Ring.ByType[typ] == 0 {
				t.Errorf("no %s: %v", typ, r.Ring.ByType)
			}
		}
		want := shm.StimulusEvent{ElapsedMS: 5, StepIndex: 1, OpCount: 2, TotalIterations: 1 << 40}
		if len(r.Stimuli) != 1 || r.Stimuli[0] != want || fmt.Sprint(r.Results) != "[map[name:a passed:true]]" {
			t.Errorf("stimuli %v, results %v", r.Stimuli, r.Results)
		}
	})
	t.Run("CRSH", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", os.Args[0], "-helper=crash")
		if e.code != 122 || r.Outcome != "crash" || r.Crash == nil || r.Crash.Message != "the test says so" {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
	})
	t.Run("SCDX", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", os.Args[0], "-helper=scheduler-exit")
		if e.code != 121 || r.SchedulerExit == nil || *r.SchedulerExit.Code != -7 {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
	})
	t.Run("a shell's lines", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", "busybox", "sh", "-c", `
			echo 'TEST {"name":"b","passed":false}' > $KTSTR_MESSAGES
			echo 'STIM {"step_index":3}' > $KTSTR_MESSAGES
			busybox printf 'PMET {}\nRAWO []\n' > $KTSTR_MESSAGES
			exit 4`)
		if e.code != 4 || len(r.Stimuli) != 1 || r.Stimuli[0].StepIndex != 3 || fmt.Sprint(r.Results) != "[map[name:b passed:false]]" ||
			r.Ring.ByType["PMET"] != 1 || r.Ring.ByType["RAWO"] != 1 {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
	})
}

// The example of a test that reports, as the README shows it.
func TestExample(t *testing.T) {
	t.Parallel()
	e, r := reported(t, "--", os.Getenv("KTSTR_TEST_EXAMPLE"), "-test.v")
	if e.code != 0 || !strings.Contains(string(e.stdout), "--- PASS: TestLatency") || len(r.Results) != 1 || r.Ring.ByType["PMET"] != 1 {
		t.Errorf("exit code %d, %s%s\n%+v", e.code, e.stdout, e.stderr, r)
	}
}

// A Go test binary has its testdata in its folder.
func TestTestdata(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "testdata", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "testdata", "sub", "file"), []byte("golden"), 0o644); err != nil {
		t.Fatal(err)
	}
	e := vmmRunIn(t, dir, "--", os.Args[0], "-test.run=TestReadsTestdata", "-test.v")
	if e.code != 0 || !strings.Contains(string(e.stdout), "--- PASS: TestReadsTestdata") {
		t.Errorf("exit code %d, %s%s", e.code, e.stdout, e.stderr)
	}
}

// TestReadsTestdata is for TestTestdata's guest; elsewhere there is no such file.
func TestReadsTestdata(t *testing.T) {
	if os.Getenv("KTSTR_SOCKET") == "" {
		return
	}
	if text, err := os.ReadFile("testdata/sub/file"); err != nil || string(text) != "golden" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{
		"--tty=false": "no terminal\n",
		"--tty":       "/dev/pts/0\r\n24 80\r\nthe controlling one\r\n",
	} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			vmmRun(t, flag, "--", "busybox", "sh", "-c", `
				test -t 1 || { echo no terminal; exit; }
				busybox tty; busybox stty size; echo the controlling one > /dev/tty`).want(t, 0, want)
		})
	}
}

// The console goes to a file and to stderr, and the kernel says more; the output is what it was.
func TestConsole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console")
	e := vmmRun(t, "--verbose", "--console", path, "--", "busybox", "echo", "output")
	e.want(t, 0, "output\n")
	text, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(text, []byte("Linux version")) || !bytes.Contains(e.stderr, []byte("Linux version")) {
		t.Errorf("%v, console %s, stderr %s", err, text, e.stderr)
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	const only = "console=ttyS0 quiet rdinit=/init reboot=k panic=-1 pci=off iomem=relaxed all=mine"
	for flag, tc := range map[string]struct{ value, want string }{
		"--append":       {"more=yes", linux.Cmdline + " more=yes\n"},
		"--cmdline-only": {only, only + "\n"},
	} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			e := vmmRun(t, flag, tc.value, "--", "busybox", "cat", "/proc/cmdline")
			ring, rest, _ := strings.Cut(string(e.stdout), " console=")
			if e.code != 0 || "console="+rest != tc.want || !strings.HasPrefix(ring, "KTSTR_SHM_BASE=0x") || !strings.Contains(ring, " KTSTR_SHM_SIZE=0x") {
				t.Errorf("exit code %d, %s%s", e.code, e.stdout, e.stderr)
			}
		})
	}
}

// A base initramfs lies below the one that is made.
func TestBaseInitrd(t *testing.T) {
	t.Parallel()
	base := initramfs.New()
	base.AddText("/base/file", "from the base\n", 0o600)
	base.AddText("/init", "not this one", 0o755)
	path := filepath.Join(t.TempDir(), "base.cpio")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := base.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	vmmRun(t, "--initrd", path, "--", "busybox", "cat", "/base/file").want(t, 0, "from the base\n")
}

// Whatever eats the guest up, the run ends with a name.
func TestHogs(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--memory", "256M", "--", "busybox", "sh", "-c", "busybox tail /dev/zero; echo $?")
		if e.code != 0 || string(e.stdout) != "137\n" || r.Outcome != "exited" || !strings.Contains(r.ConsoleTail, "Out of memory") {
			t.Errorf("exit code %d, stdout %q, %s\n%+v", e.code, e.stdout, e.stderr, r)
		}
	})
	t.Run("forks", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--memory", "256M", "--timeout", "40s", "--", "busybox", "sh", "-c", "bomb() { bomb | bomb & }; bomb; while :; do busybox sleep 1; done")
		if e.took > 2*time.Minute || !(e.code == 124 && r.Outcome == "timeout" || e.code == 122 && r.Outcome == "crash") {
			t.Errorf("after %v exit code %d, stdout %q, %s\n%+v", e.took, e.code, e.stdout, e.stderr, r)
		}
	})
}

// The host's control bytes: a dump is on the console, a stall is a file in the guest.
func TestControlBytes(t *testing.T) {
	t.Parallel()
	cfg, files, err := linux.Guest{Kernel: kernel, Agent: vmm, Command: []string{"busybox", "sh", "-c", "until test -e /tmp/ktstr_stall; do busybox sleep 0.1; done; echo stalled"}}.Config()
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	var mu sync.Mutex
	var stdout []byte
	started := make(chan struct{})
	r := run.Run(context.Background(), run.Config{
		VM:      cfg,
		Timeout: 3 * time.Minute,
		OnMessage: func(_ time.Duration, m shm.Message) {
			mu.Lock()
			defer mu.Unlock()
			switch m.Type {
			case shm.ScenarioStart:
				close(started)
			case shm.Stdout:
				stdout = append(stdout, m.Payload...)
			}
		},
		Drive: func(ctx context.Context, c shm.Control) error {
			select {
			case <-ctx.Done():
				return nil
			case <-started:
			}
			c.RequestDump()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(2 * time.Second):
			}
			c.RequestStall()
			return nil
		},
	})
	mu.Lock()
	defer mu.Unlock()
	if r.ExitCode != 0 || string(stdout) != "stalled\n" || !bytes.Contains(r.Console, []byte("sysrq: ")) {
		t.Errorf("%v, exit code %d, stdout %q, console %s", r.Outcome, r.ExitCode, stdout, r.Console)
	}
}

// Twenty at once, each with its own ring and output, and little memory beside the guest's.
func TestTwentyAtOnce(t *testing.T) {
	const (
		runs   = 20
		memory = 160 << 20
		ring   = 64 << 10
		most   = 24 << 10 // KiB
	)
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() {
			var stdout, stderr bytes.Buffer
			cmd := exec.Command(vmm, "run", "--kernel", kernel, "--timeout", "8m", "--memory", fmt.Sprint(memory), "--shm-size", fmt.Sprint(ring), "--",
				"busybox", "sh", "-c", fmt.Sprintf("i=0; while test $i -lt 2000; do echo guest %d line $i; i=$((i+1)); done; exit %d", i, i))
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			largest := make(chan int)
			stop := make(chan struct{})
			go func() {
				kib := 0
				for {
					kib = max(kib, besideGuest(cmd.Process.Pid, memory-ring))
					select {
					case <-stop:
						largest <- kib
						return
					case <-time.After(5 * time.Second):
					}
				}
			}()
			_ = cmd.Wait()
			close(stop)
			if kib := <-largest; kib == 0 || kib > most {
				t.Errorf("run %d: %d KiB beside the guest's memory, at most %d", i, kib, most)
			}
			var want bytes.Buffer
			for n := range 2000 {
				fmt.Fprintf(&want, "guest %d line %d\n", i, n)
			}
			if code := cmd.ProcessState.ExitCode(); code != i || !bytes.Equal(stdout.Bytes(), want.Bytes()) {
				t.Errorf("run %d: exit code %d, %d bytes of stdout, want %d: %.1000s", i, code, stdout.Len(), want.Len(), stderr.Bytes())
			}
		})
	}
	wg.Wait()
}

// besideGuest is a process's resident memory without its guest's, in KiB: the ring's memfd and the
// anonymous mapping of ram bytes, which huge pages being offered for all but its beginning may show
// as two. 0 where the process is gone.
func besideGuest(pid int, ram uint64) int {
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0
	}
	const small = 16 << 20
	type mapping struct {
		start, end uint64
		memfd      bool
		kib        int
	}
	var all []mapping
	for line := range strings.Lines(string(smaps)) {
		var m mapping
		if n, _ := fmt.Sscanf(line, "%x-%x", &m.start, &m.end); n == 2 {
			m.memfd = strings.Contains(line, "memfd:")
			all = append(all, m)
		} else if n, _ := fmt.Sscanf(line, "Rss: %d kB", &m.kib); n == 1 {
			all[len(all)-1].kib = m.kib
		}
	}
	sum := 0
	for i, m := range all {
		size := m.end - m.start
		upper := size == ram-small && i > 0 && all[i-1].end == m.start
		lower := size == small && i+1 < len(all) && all[i+1].start == m.end && all[i+1].end-m.end == ram-small
		if !m.memfd && size != ram && !upper && !lower {
			sum += m.kib
		}
	}
	return sum
}
