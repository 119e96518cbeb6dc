//go:build linuxbed

package linux

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// longWait is for schedulers that become one, on busy hosts and slow machines.
const longWait = "2m"

// scheduled is reported, for runs whose scheduler becomes one.
func scheduled(t *testing.T, args ...string) (ended, report) {
	t.Helper()
	return reported(t, append([]string{"--scheduler-wait", longWait}, args...)...)
}

// comm is the name that a program's task has: Linux's TASK_COMM_LEN.
func comm(program string) string {
	name := filepath.Base(program)
	return name[:min(len(name), 15)]
}

// stalls is how long a task waits until the kernel throws a scheduler out, in these tests.
const stalls = "2s"

// Each way in which a scheduler goes wrong has its outcome, a reason and, where the kernel found it at fault, a dump.
// None is missed: the command would end with 0.
func TestSchedExtEndings(t *testing.T) {
	t.Parallel()
	const stalled = "was disabled by the kernel (runnable task stall): "
	for name, tc := range map[string]struct {
		flags  string // of the FIFO
		reason string
		dump   string // what the dump has; "": there is none
		none   bool   // the command must not start
		code   int    // of SCDX
		wait   string // how long it may take to become the scheduler; "": longWait
	}{
		"exits":  {flags: "-exit-after 3s", reason: "exited with code 0"},
		"panics": {flags: "-panic-after 3s", reason: "exited with code 2: panic: fifo: as -panic-after asks", code: 2},
		"forgets": {flags: "-watchdog " + stalls + " -forget " + comm(workload), reason: stalled + comm(workload) + "[",
			dump: "triggered exit kind", code: -1},
		"forgets all": {flags: "-watchdog " + stalls + " -forget *", reason: stalled, dump: "triggered exit kind",
			code: -1},
		"fails to load": {flags: "-reject", reason: "; infinite loop detected at insn 4", none: true, code: 1},
		"never attaches": {flags: "-no-attach", none: true, code: -1, wait: "3s",
			reason: `did not become the scheduler within 3s: /sys/kernel/sched_ext/state is "disabled"`},
	} {
		for _, cpus := range []string{"1", "4"} {
			t.Run(name+" "+cpus, func(t *testing.T) {
				t.Parallel()
				e, r := reported(t, "--cpus", cpus, "--scheduler", fifo+" "+tc.flags, "--scheduler-wait", cmp.Or(tc.wait, longWait),
					"--", workload, "cpu", "-time", "2m")
				if e.code != 121 || r.Outcome != "scheduler_exit" || !strings.Contains(r.Reason, tc.reason) ||
					!strings.Contains(string(e.stderr), "scheduler_exit: the scheduler under test ") {
					t.Fatalf("exit code %d, %q, %s", e.code, r.Reason, e.stderr)
				}
				if c := r.SchedulerExit.Code; c == nil || int(*c) != tc.code {
					t.Errorf("code %v, %q", c, r.Reason)
				}
				if r.Scheduler.Dump == "" != (tc.dump == "") || !strings.Contains(r.Scheduler.Dump, tc.dump) {
					t.Errorf("the dump is %q", r.Scheduler.Dump)
				}
				if tc.dump != "" && strings.Contains(r.ConsoleTail, "CPU states") {
					t.Errorf("the dump is on the console:\n%s", r.ConsoleTail)
				}
				if started := r.Ring.ByType["SCST"] == 1; started == tc.none && name != "forgets all" {
					t.Errorf("the command has started: %v", started)
				}
				r.wantKnownSoon(t)
			})
		}
	}
}

// wantKnownSoon looks at the time between the kernel's own notice of a scheduler's end and the first message that says
// so. On a host with nothing else to do it is at most 0.2 s.
func (r report) wantKnownSoon(t *testing.T) {
	t.Helper()
	states := r.Scheduler.States
	last := states[len(states)-1]
	if last.Noticed == 0 {
		return
	}
	for _, s := range states {
		if s.State == "disabling" || s.State == "disabled" || s.State == "lost" || s.State == "refused" {
			t.Logf("%s: known %.3f s after the kernel's notice", s.State, s.Guest-last.Noticed)
			if s.Guest-last.Noticed > 5 {
				t.Errorf("%+v", states)
			}
			return
		}
	}
}

// A scheduler that does all right is enabled before the command starts and goes when it is asked to; its last words are
// in the report. The command's own policy is that of any process, though the agent has a real-time one.
func TestSchedExtStates(t *testing.T) {
	t.Parallel()
	e, r := scheduled(t, "--cpus", "2", "--scheduler", fifo, "--", "busybox", "sh", "-c",
		"busybox cat /sys/kernel/sched_ext/state; "+
			"busybox cut -d ' ' -f 41 /proc/self/stat; busybox cut -d ' ' -f 41 /proc/1/stat")
	e.want(t, 0, "enabled\n0\n1\n")
	var states []string
	for _, s := range r.Scheduler.States {
		states = append(states, s.State)
	}
	text := strings.Join(states, " ")
	if !strings.HasPrefix(text, "loading") || !strings.Contains(text, " enabled ") || !strings.HasSuffix(text, " left") {
		t.Errorf("states %s", text)
	}
	for _, s := range r.Scheduler.States {
		if s.State == "enabled" && (s.Ops != "fifo" || s.EnableSeq != 1 || !s.SwitchAll || s.PID == 0) {
			t.Errorf("%+v", s)
		}
	}
	words := r.Scheduler.OutputTail
	if !strings.HasPrefix(words, "fifo: enabled\nfifo: enqueued ") || r.Scheduler.Dump != "" || len(r.DumpRequests) != 0 {
		t.Errorf("%+v", r.Scheduler)
	}
}

// Who ignores the TERM is killed; that is said, and the outcome is the command's.
func TestSchedExtIgnoresTerm(t *testing.T) {
	t.Parallel()
	for _, cpus := range []string{"1", "4"} {
		t.Run(cpus, func(t *testing.T) {
			t.Parallel()
			e, r := scheduled(t, "--cpus", cpus, "--scheduler", fifo+" -ignore-term", "--", "busybox", "sh", "-c", "exit 7")
			last := r.Scheduler.States[len(r.Scheduler.States)-1]
			if e.code != 7 || r.Outcome != "exited" || last.State != "left" ||
				last.Reason != "ignored a TERM for 2s and was killed; it exited with code 137 (SIGKILL)" {
				t.Errorf("exit code %d, %+v", e.code, last)
			}
		})
	}
}

// script writes a shell's script, and returns the flags that put it into a guest.
func script(t *testing.T, text string) (path string, include []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, []string{"--include", path, "--include", fifo}
}

// A scheduler that another one follows, though its process lives, is gone.
func TestSchedExtReplaced(t *testing.T) {
	t.Parallel()
	path, include := script(t, fifo+" & first=$!\nuntil test -e /tmp/started; do busybox sleep 0.1; done\n"+
		"kill -9 $first\nexec "+fifo+"\n")
	e, r := scheduled(t, append(include, "--scheduler", "busybox sh "+path, "--", "busybox", "sh", "-c",
		"echo > /tmp/started; busybox sleep 1000")...)
	last := r.Scheduler.States[len(r.Scheduler.States)-1]
	if e.code != 121 || last.State != "lost" && last.State != "replaced" ||
		!strings.Contains(r.Reason, "though its process lives: (unregistered from user space)") &&
			!strings.Contains(r.Reason, "was replaced") {
		t.Errorf("exit code %d, %q, %+v", e.code, r.Reason, r.Scheduler.States)
	}
}

// Somebody in the guest ends the scheduler, by sysrq-S.
func TestSchedExtSysrq(t *testing.T) {
	t.Parallel()
	e, r := scheduled(t, "--scheduler", fifo, "--", "busybox", "sh", "-c",
		"echo S > /proc/sysrq-trigger; busybox sleep 1000")
	if e.code != 121 || !strings.Contains(r.Reason, "was disabled by the kernel (disabled by sysrq-S)") {
		t.Errorf("exit code %d, %q", e.code, r.Reason)
	}
}

// A scheduler that dies while the command's last output is awaited.
func TestSchedExtDiesInTheFlush(t *testing.T) {
	t.Parallel()
	path, include := script(t, "echo $$ > /tmp/scheduler.pid\nexec "+fifo+"\n")
	e, r := scheduled(t, append(include, "--scheduler", "busybox sh "+path, "--", "busybox", "sh", "-c",
		"pid=$(busybox cat /tmp/scheduler.pid); (trap 'kill -9 $pid' TERM; while :; do :; done) & exit 0")...)
	if e.code != 121 || !strings.Contains(r.Reason, "exited with code 137 (SIGKILL)") {
		t.Errorf("exit code %d, %q", e.code, r.Reason)
	}
}

// At the soft deadline the dump is in the report, in a section of its own.
func TestSchedExtDumpAtSoftDeadline(t *testing.T) {
	t.Parallel()
	e, r := scheduled(t, "--timeout", "40s", "--grace", "20s", "--scheduler", fifo, "--", workload, "cpu", "-time", "10m")
	if e.code != 124 || r.Outcome != "timeout" || len(r.DumpRequests) != 1 ||
		!strings.HasPrefix(r.Scheduler.Dump, "Debug dump triggered by SysRq-D\n") ||
		!strings.Contains(r.Scheduler.Dump, comm(workload)+"[") || strings.Contains(r.ConsoleTail, "CPU states") ||
		!strings.Contains(string(e.stderr), "sched_ext's dump:\n  Debug dump triggered by SysRq-D") {
		t.Errorf("exit code %d, %s, %+v\n%+v", e.code, e.stderr, r.DumpRequests, r.Scheduler)
	}
}

// Stalls have their dumps, one each, and the run goes on.
func TestSchedExtDumpOnStall(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		flag, value string
		why         string
	}{
		"polls": {"--stall-polls", "100", "no STIM came in 100 polls"},
		"rate":  {"--stall-rate", "5", "0 messages a second came, fewer than 5"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, r := scheduled(t, "--dump-on", "stall", tc.flag, tc.value, "--scheduler", fifo, "--",
				"busybox", "sh", "-c", "busybox sleep 4; exit 3")
			if e.code != 3 || len(r.DumpRequests) != 1 || r.DumpRequests[0].Why != tc.why ||
				strings.Count(r.Scheduler.Dump, "Debug dump triggered by SysRq-D\n") != 1 {
				t.Errorf("exit code %d, %+v\n%+v", e.code, r.DumpRequests, r.Scheduler)
			}
		})
	}
}

// A scheduler that does all right is never said to be gone. KTSTR_TEST_SCX_RUNS says how many runs show it.
func TestSchedExtNoFalseAlarm(t *testing.T) {
	t.Parallel()
	runs, err := strconv.Atoi(cmp.Or(os.Getenv("KTSTR_TEST_SCX_RUNS"), "4"))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for i := range runs {
		work := []string{"cpu", "pingpong"}[i%2]
		e, r := scheduled(t, "--cpus", fmt.Sprint(1+i/2%2*3), "--scheduler", fifo, "--", workload, work, "-time", "500ms")
		if last := r.Scheduler.States[len(r.Scheduler.States)-1]; e.code != 0 || last.State != "left" {
			t.Fatalf("run %d, %s: exit code %d, %q, %s\n%+v", i, work, e.code, r.Reason, e.stderr, r.Scheduler)
		}
	}
	t.Logf("%d runs in %v", runs, time.Since(start).Round(time.Second))
}
