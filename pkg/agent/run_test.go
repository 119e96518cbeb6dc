package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/ktstr"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

func TestRun(t *testing.T) {
	for name, tc := range map[string]struct {
		job  agentproto.Job
		want []string
	}{
		"success": {shellJob("pwd | sed 's,/.*/,/,'"), []string{"SCST ", "STDO /there\n", "SCEN ", code(shm.Exit, 0)}},
		"failure": {shellJob("echo no >&2; exit 3"), []string{"SCST ", "STDE no\n", "SCEN ", code(shm.Exit, 3)}},
		"signal":  {shellJob("kill -USR1 $$"), []string{"SCST ", "SCEN ", code(shm.Exit, 138)}},
		"terminal": {agentproto.Job{Args: []string{"/bin/sh", "-c", "test -t 0 && echo tty > /dev/tty"}, TTY: true},
			[]string{"SCST ", "STDO tty\r\n", "SCEN ", code(shm.Exit, 0)}},
		"one output": {agentproto.Job{Args: []string{"/bin/sh", "-c", "echo a; echo b >&2; echo c"}, OneOutput: true},
			[]string{"SCST ", "STDO a\nb\nc\n", "SCEN ", code(shm.Exit, 0)}},
		"not there": {agentproto.Job{Args: []string{"/no/such/program"}}, []string{
			"SCST ", "STDE ktstr-vmm: fork/exec /no/such/program: no such file or directory\n", "SCEN ", code(shm.Exit, 127),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuestFor(t, tc.job)
			got := g.boot()
			if out := output(shm.Stdout, got); out != "" { // it comes in any number of pieces
				rest := got[:1]
				got = append(append(rest[:1:1], "STDO "+out), got[len(got)-2:]...)
			}
			wantMessages(t, got, tc.want...)
		})
	}
}

// What keeps the agent from its work is said.
func TestRunFails(t *testing.T) {
	for name, tc := range map[string]struct {
		path, text string
		says       string
	}{
		"no ring":   {"/proc/cmdline", "quiet", "KTSTR_SHM_BASE"},
		"no job":    {agentproto.JobPath, "", "it has no command"},
		"no module": {agentproto.JobPath, "arg \"/bin/true\"\nmodule \"/none.ko \"\n", "/none.ko: no such file"},
		"bad ring":  {"/proc/cmdline", "KTSTR_SHM_BASE=0x100800 KTSTR_SHM_SIZE=0x100000", "mapping"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, "exit 0")
			g.write(tc.path, tc.text)
			if err := g.agent.run(t.Context()); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

// leftover is a shell's script that leaves a child behind, which says x for ever.
const leftover = "(while :; do echo x; sleep 0.1; done) &"

// What is left of the command when it ends is ended, and keeps nobody from the command's code.
func TestLeftoverChild(t *testing.T) {
	for name, tc := range map[string]struct{ script, says string }{
		"that prints":          {leftover + " exit 7", "x\n"},
		"that ignores TERM":    {"(trap '' TERM; while :; do echo x; sleep 0.1; done) & exit 7", "x\n"},
		"that says a last one": {"(trap 'echo last; exit' TERM; while :; do sleep 0.1; done) & sleep 0.3; exit 7", "last\n"},
		"in its own session":   {"setsid sleep 1000 & exit 7", ""},
		"that forks":           {"(trap '' TERM; while :; do sleep 0.01 & done) & sleep 0.1; exit 7", ""},
		"with a slow last one": {"(sleep 0.2; echo slow) & exit 7", "slow\n"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, tc.script)
			start := time.Now()
			got := g.boot()
			if took := time.Since(start); took > hangs/2 {
				t.Errorf("took %v", took)
			}
			wantMessages(t, of(shm.Exit, got), code(shm.Exit, 7))
			if out := output(shm.Stdout, got); !strings.Contains(out, tc.says) {
				t.Errorf("stdout %.2000q", out)
			}
			if left := g.leftovers(); len(left) != 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

// While the command's leftovers are waited for, the host is heard.
func TestLeftoverChildAndControl(t *testing.T) {
	g := newGuest(t, "(trap '' TERM; while :; do echo x; sleep 0.1; done) & echo ended")
	n := 0
	g.on = func(m string) {
		if m == "STDO x\n" {
			if n++; n == 3 {
				g.control.RequestStall()
				g.control.RequestDump()
			}
		}
	}
	g.boot()
	if g.read("/tmp/ktstr_stall"); g.read("/proc/sysrq-trigger") != "D" {
		t.Error("no dump was asked for")
	}
}

// The command is asked to end by the host, and ended if it does not; a leftover then gets no time.
func TestShutdown(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		code   int32
	}{
		"obeyed":  {"trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done", 5},
		"ignored": {"trap '' TERM; echo up; while :; do sleep 0.1; done", 137},
		"at once": {"sleep 1000 & exec sleep 1000", 143},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, tc.script)
			g.on = func(m string) {
				if m == "STDO up\n" || name == "at once" {
					if err := g.control.Signal(shm.SlotHost, shm.SignalShutdown); err != nil {
						t.Error(err)
					}
				}
			}
			got := g.boot()
			wantMessages(t, of(shm.Exit, got), code(shm.Exit, tc.code))
			if out := output(shm.Stdout, got); name == "obeyed" && out != "up\nbye\n" {
				t.Errorf("stdout %q", out)
			}
		})
	}
}

// A signal that asks PID 1 for the system's end ends the command and the machine, in order: what the
// command says is there, and its code is no result.
func TestOrderlyEnd(t *testing.T) {
	for s, how := range ends {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			script := "trap 'echo bye; exit 0' TERM; kill -%d $PPID; while :; do sleep 0.1; done"
			g := newGuest(t, fmt.Sprintf(script, s))
			got := g.boot()
			said := strings.Contains(output(shm.Stderr, got), unix.SignalName(s.(unix.Signal))+" to PID 1")
			if len(of(shm.Exit, got)) != 0 || output(shm.Stdout, got) != "bye\n" || !said {
				t.Errorf("got %q", got)
			}
			if g.machineEnd() != how {
				t.Errorf("the machine is to end by %#x, want %#x", g.machineEnd(), how)
			}
		})
	}
	t.Run("what means nothing to PID 1", func(t *testing.T) {
		g := newGuest(t, "for s in ABRT TRAP SYS SEGV BUS FPE ILL; do kill -$s $PPID || echo $s; done; exit 4")
		wantMessages(t, g.boot(), "SCST ", "SCEN ", code(shm.Exit, 4))
		if g.machineEnd() != unix.LINUX_REBOOT_CMD_RESTART {
			t.Errorf("the machine is to end by %#x", g.machineEnd())
		}
	})
}

// TestExitHelper is the command of TestDoorsExitIsTheLast; elsewhere it does nothing.
func TestExitHelper(t *testing.T) {
	if os.Getenv("AGENT_TEST_HELPER") == "" {
		return
	}
	h, err := ktstr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Exit(9); err != nil {
		t.Fatal(err)
	}
	os.Exit(0)
}

// After a door's EXIT the agent sends none: the last one counts.
func TestDoorsExitIsTheLast(t *testing.T) {
	g := newGuestFor(t, agentproto.Job{
		Args: []string{os.Args[0], "-test.run=^TestExitHelper$"}, Env: []string{"AGENT_TEST_HELPER=1"},
	})
	wantMessages(t, of(shm.Exit, g.boot()), code(shm.Exit, 9))
}

// The OOM killer spares the agent and the scheduler, and not the command.
func TestSparedByTheOOMKiller(t *testing.T) {
	j := shellJob("exit 0")
	g := newGuestFor(t, j)
	const score = "/proc/self/oom_score_adj"
	if err := os.Remove(g.path(score)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(g.path(score), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(g.path(score), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	wantMessages(t, g.boot(), "SCST ", "SCEN ", code(shm.Exit, 0))
	written := make([]byte, 100)
	n, err := f.Read(written)
	if got := string(written[:n]); err != nil || got != "-1000\n0\n-1000\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// A process that was reaped is signalled no more: its ID may be another's.
func TestTimerIsBoundToItsProcess(t *testing.T) {
	r := startReaper()
	devNull, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer devNull.Close()
	// It leaves a member of its group behind, so that a signal to the group would succeed.
	p, err := r.start(&program{
		args: []string{"/bin/sh", "-c", "sleep 1000 & exit 0"}, env: os.Environ(), dir: "/",
		stdout: devNull, stderr: devNull, sys: unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(hangs); time.Now().Before(end); time.Sleep(time.Millisecond) {
		r.reap()
		if err = p.signalGroup(0); err != nil {
			break
		}
	}
	if err != os.ErrProcessDone || unix.Kill(-p.pid, unix.SIGKILL) != nil {
		t.Errorf("%v", err)
	}
}

// A guest is like a host, but where its base or what it includes has its own.
func TestLikeAHost(t *testing.T) {
	j := shellJob(`echo "$USER $HOSTNAME"`)
	j.OpenFiles = agentproto.Limit{Soft: 2048, Hard: 1 << 20}
	g := newGuestFor(t, j)
	var name string
	var limit unix.Rlimit
	g.kernel.setHostname = func(p []byte) error { name = string(p); return nil }
	g.kernel.setLimit = func(_ int, l *unix.Rlimit) error { limit = *l; return nil }
	g.write("/etc/passwd", "mine\n")
	g.write("/proc/sys/fs/nr_open", "4096\n")
	if err := os.Symlink("nowhere", g.path("/etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if out := output(shm.Stdout, g.boot()); out != "root ktstr\n" || name != "ktstr" {
		t.Errorf("%q, named %q", out, name)
	}
	if limit != (unix.Rlimit{Cur: 2048, Max: 1 << 20}) || g.read("/proc/sys/fs/nr_open") != "1048576\n" {
		t.Errorf("limit %+v", limit)
	}
	passwd, hosts := g.read("/etc/passwd"), g.read("/etc/hosts")
	if passwd != "mine\n" || hosts != "127.0.0.1\tlocalhost ktstr\n::1\tlocalhost\n" {
		t.Errorf("%q, %q", passwd, hosts)
	}
	if _, err := os.Lstat(g.path("/etc/nowhere")); err == nil {
		t.Error("a link was written through")
	}
	for _, path := range []string{"/etc/group", "/etc/nsswitch.conf", "/etc/hostname"} {
		g.read(path)
	}

	g = newGuest(t, `echo "$HOSTNAME"`)
	g.write("/etc/hostname", "base\n")
	if out := output(shm.Stdout, g.boot()); out != "base\n" {
		t.Errorf("%q", out)
	}
}

func TestMounts(t *testing.T) {
	for fails, wanted := range map[string]bool{"proc": true, "sysfs": true, "devtmpfs": true,
		"tracefs": false, "": false} {
		g := newGuest(t, "exit 0")
		g.kernel.mount = func(_, _, fstype string, _ uintptr, _ string) error {
			if fstype == fails {
				return unix.ENODEV
			}
			return unix.EBUSY // it is there
		}
		if err := g.mountAll(); (err != nil) != wanted {
			t.Errorf("without %s: %v", fails, err)
		}
	}
}
