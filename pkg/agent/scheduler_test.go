package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

const forever = "exec sleep 1000"

// enabled is what a shell's script says in the place of a kernel that enables a scheduler.
const enabled = "echo mine > $S/root/ops; echo enabled > $S/state; echo 8 > $S/enable_seq; "

// newScheduled returns a guest whose kernel has sched_ext, which is a folder that scripts know as $S, with a log that
// they know as $LOG.
func newScheduled(t *testing.T, scheduler, script string) *guest {
	t.Helper()
	j := shellJob(script)
	j.Scheduler = []string{"/bin/sh", "-c", scheduler}
	g := newGuestFor(t, j)
	j.Env = append(j.Env, "S="+g.path("/sys/kernel/sched_ext"), "LOG="+g.path(logDevice))
	g.write(agentproto.JobPath, j.Encode())
	g.write(schedExtState, "disabled\n")
	g.write(schedExtOps, "")
	g.write(schedExtEnableSeq, "7\n")
	g.write(schedExtRejected, "3\n")
	g.write(schedExtHotplug, "5\n")
	g.write(schedExtSwitchAll, "1\n")
	if err := unix.Mkfifo(g.path(logDevice), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(g.path(logDevice), os.O_RDWR, 0) // so that it has no end
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	g.limits.schedulerUp = time.Second
	g.limits.schedulerTerm = 500 * time.Millisecond
	g.on = func(m string) {
		if strings.HasPrefix(m, "SCDX") { // as the host stops the machine
			g.askToStop()
		}
	}
	return g
}

// states are those that a guest sent.
func states(t *testing.T, messages []string) (states []shm.SchedulerState) {
	t.Helper()
	for _, m := range of(shm.SchedulerChange, messages) {
		s, err := shm.DecodeSchedulerState([]byte(strings.TrimPrefix(m, "SXST ")))
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, s)
	}
	return states
}

// endScheduler ends the scheduler, which lives on where a machine would end.
func (g *guest) endScheduler() {
	if g.scheduler == nil {
		return
	}
	_ = g.scheduler.signalGroup(unix.SIGKILL)
	for end := time.Now().Add(hangs); len(descendants(os.Getpid(), 0)) > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	g.reaper.reap()
}

func logged(text string) string {
	return fmt.Sprintf("echo '6,1,1500000,-;sched_ext: %s' > $LOG; ", text)
}

func TestScheduler(t *testing.T) {
	throwsOut := logged(`BPF scheduler "mine" disabled (runnable task stall)`) +
		logged("mine: zz[56] failed to run for 2.918s") + "echo disabled > $S/state; : > $S/root/ops; "
	for name, tc := range map[string]struct {
		scheduler, script string
		phase             shm.SchedulerPhase // the last one
		code              int32              // of SCDX, where the phase is an end
		reason            string
		not               bool // the command must not start
	}{
		"in charge": {scheduler: "sleep 0.1; " + enabled + forever, script: "cat $S/root/ops", phase: shm.SchedulerLeft,
			reason: "exited with code 143 (SIGTERM)"},
		"fails when it is asked to go": {
			scheduler: "trap 'echo a leak >&2; exit 3' TERM; " + enabled + "while :; do :; done", script: "exit 0",
			phase: shm.SchedulerLost, code: 3, reason: "exited with code 3 when it was asked to go: a leak",
		},
		"not in charge when the run is to end": {
			scheduler: "kill -TERM $PPID; " + forever, phase: shm.SchedulerRefused, code: codeNotScheduler, not: true,
			reason: `did not become the scheduler before the run was to end: /sys/kernel/sched_ext/state is "disabled"`,
		},
		"never in charge": {
			scheduler: forever, script: "exit 0", phase: shm.SchedulerRefused, code: codeNotScheduler, not: true,
			reason: `did not become the scheduler within 1s: /sys/kernel/sched_ext/state is "disabled"`,
		},
		"the verifier refuses it": {
			scheduler: "printf 'load:\\n\\t0: R1=ctx() R10=fp0\\n\\t; int f() @ f.c:1\\n\\t1: (bf) r2 = r0\\n\\tR0 !read_ok\\n" +
				"\\tprocessed 2 insns (limit 1000000) max_states_per_insn 0\\n' >&2; exit 1",
			phase: shm.SchedulerRefused, code: 1, not: true,
			reason: "exited with code 1 before it was the scheduler: load:; R0 !read_ok",
		},
		"panics": {
			scheduler: "printf 'panic: boom\\n\\ngoroutine 1 [running]:\\nmain.main()\\n' >&2; exit 2",
			phase:     shm.SchedulerRefused, code: 2, not: true,
			reason: "exited with code 2 before it was the scheduler: panic: boom",
		},
		"the kernel refuses it": {
			scheduler: logged(`BPF scheduler "mine" disabled (runtime error)`) +
				logged("mine: ops.init() failed (-12)") + forever,
			phase: shm.SchedulerRefused, code: codeNotScheduler, not: true,
			reason: "was disabled by the kernel (runtime error): ops.init() failed (-12); its process lives",
		},
		"enabled and thrown out at once": {
			scheduler: "echo 8 > $S/enable_seq; " + throwsOut + forever, script: forever,
			phase: shm.SchedulerLost, code: codeNotScheduler, not: true,
			reason: "was disabled by the kernel (runnable task stall): zz[56] failed to run for 2.918s; its process lives",
		},
		"thrown out": {
			scheduler: enabled + forever, script: throwsOut + forever, phase: shm.SchedulerLost, code: codeNotScheduler,
			reason: "was disabled by the kernel (runnable task stall): zz[56] failed to run for 2.918s; its process lives",
		},
		"thrown out, and ends": {
			scheduler: enabled + "while [ -s $S/root/ops ]; do sleep 0.01; done; echo unregistered; exit 86",
			script:    throwsOut + forever, phase: shm.SchedulerLost, code: 86,
			reason: "was disabled by the kernel (runnable task stall): zz[56] failed to run for 2.918s; " +
				"its process exited with code 86",
		},
		"thrown out with the command's end": {
			scheduler: enabled + forever, script: throwsOut, phase: shm.SchedulerLost, code: codeNotScheduler,
			reason: "was disabled by the kernel (runnable task stall)",
		},
		"thrown out when asked to go": {
			scheduler: "end() { " + throwsOut + "exit 0; }; trap end TERM; " + enabled + "while :; do sleep 0.01; done",
			script:    "exit 0", phase: shm.SchedulerLost,
			reason: "was disabled by the kernel (runnable task stall)",
		},
		"takes itself back": {
			scheduler: enabled + forever, phase: shm.SchedulerLost, code: codeNotScheduler,
			script: logged(`BPF scheduler "mine" disabled (unregistered from user space)`) +
				"echo disabled > $S/state; " + forever,
			reason: "is not the scheduler any more, though its process lives: (unregistered from user space)",
		},
		"another": {
			scheduler: enabled + forever, script: "echo other > $S/root/ops; echo 9 > $S/enable_seq; " + forever,
			phase: shm.SchedulerReplaced, code: codeNotScheduler,
			reason: `root/ops was "mine" and is "other"`,
		},
		"once more": {
			scheduler: enabled + forever, script: "echo 9 > $S/enable_seq; " + forever,
			phase: shm.SchedulerReplaced, code: codeNotScheduler,
			reason: `"mine" was enabled once more, /sys/kernel/sched_ext/enable_seq is 9 and was 8`,
		},
		"ends in between": {scheduler: enabled + "sleep 0.2; echo bye; exit 42", script: "sleep 1000", code: 42,
			phase: shm.SchedulerLost, reason: "exited with code 42: bye"},
		"ends with command": {scheduler: "echo $$ > $S/pid; " + enabled + forever, phase: shm.SchedulerLost,
			script: "kill -9 $(cat $S/pid)", code: 137, reason: "exited with code 137 (SIGKILL)"},
		"ends in the linger": {
			scheduler: enabled + "while [ ! -e $S/die ]; do sleep 0.01; done; exit 42", phase: shm.SchedulerLost,
			script: "(trap ': > $S/die' TERM; while :; do sleep 0.01; done) & exit 0", code: 42,
			reason: "exited with code 42",
		},
		"dies when asked to go": {
			scheduler: "trap 'kill -SEGV $$' TERM; " + enabled + "while :; do sleep 0.01; done", script: "exit 0",
			phase: shm.SchedulerLost, code: 139, reason: "exited with code 139 (SIGSEGV)",
		},
		"ignores TERM": {
			scheduler: "trap '' TERM; " + enabled + "while :; do sleep 0.01; done", script: "exit 0", phase: shm.SchedulerLeft,
			reason: "ignored a TERM for 500ms and was killed; it exited with code 137 (SIGKILL)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newScheduled(t, tc.scheduler, tc.script)
			got := g.boot()
			g.endScheduler()
			all := states(t, got)
			if last := all[len(all)-1]; last.Phase != tc.phase || !strings.Contains(last.Reason, tc.reason) {
				t.Errorf("the last of %d states is %+v", len(all), last)
			}
			if all[0].Phase != shm.SchedulerLoading || all[0].PID == 0 || all[0].HotplugSeq != 5 || all[0].Rejected != 3 ||
				!all[0].SwitchAll {
				t.Errorf("the first state is %+v", all[0])
			}
			var want []string
			if tc.phase.Ends() {
				want = []string{code(shm.SchedulerExit, tc.code)}
			}
			wantMessages(t, of(shm.SchedulerExit, got), want...)
			if started := len(of(shm.ScenarioStart, got)) == 1; started == tc.not {
				t.Errorf("the command has started: %v, %q", started, got)
			}
		})
	}
}

// The first words and the last of a scheduler that goes when it is asked to are sent before the run's end.
func TestSchedulersWords(t *testing.T) {
	g := newScheduled(t,
		"echo hello; trap 'echo stats >&2; exit 0' TERM; "+enabled+"while :; do sleep 0.01; done", "exit 4")
	got := g.boot()
	said := of(shm.SchedulerOutput, got)
	if said[0] != "SXOU \x01hello\n" || !strings.HasSuffix(said[len(said)-1], "stats\n") {
		t.Errorf("%q", said) // and the shell's own word for the TERM
	}
	wantMessages(t, got[len(got)-1:], code(shm.Exit, 4))
	all := states(t, got)
	var phases []shm.SchedulerPhase
	for _, s := range all {
		phases = append(phases, s.Phase)
	}
	if s := fmt.Sprint(phases); s != "[loading enabled left]" || all[1].Ops != "mine" || all[1].EnableSeq != 8 {
		t.Errorf("%+v", all)
	}
}

// A state from before the scheduler was enabled is no end, though the count is from after. The file is a pipe here, so
// that the reader is held between the two, and each time it is read another one.
func TestStaleState(t *testing.T) {
	g := newScheduled(t, forever, "exit 0")
	path := g.path(schedExtState)
	newPipe := func() error {
		return errors.Join(unix.Mkfifo(path+".next", 0o600), os.Rename(path+".next", path))
	}
	if err := newPipe(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	answer := func(state, then string) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0) // comes when it is read
		if err == nil {
			err = newPipe()
			g.write(schedExtEnableSeq, then)
			_, failed := f.WriteString(state)
			err = errors.Join(err, failed, f.Close())
		}
		if err != nil {
			t.Error(err)
		}
	}
	go func() {
		defer close(answered)
		answer("disabled\n", "8\n")
		answer("enabled\n", "8\n")
	}()
	s, ok := g.readSchedExt()
	<-answered
	tenure := tenure{before: 7}
	if phase, reason := tenure.see(s); !ok || phase != shm.SchedulerEnabled {
		t.Errorf("%+v, %v is %v %s", s, ok, phase, reason)
	}
}

// Whose a state is, is said by the count alone.
func TestTenure(t *testing.T) {
	on, off, going := shm.SchedulerEnabled, shm.SchedulerDisabled, shm.SchedulerDisabling
	for name, tc := range map[string]struct {
		says []schedExt
		want shm.SchedulerPhase
	}{
		"nothing yet":          {[]schedExt{{off, "", 7}}, 0},
		"another before":       {[]schedExt{{on, "other", 7}, {off, "", 7}}, 0},
		"not counted yet":      {[]schedExt{{on, "mine", 7}}, 0},
		"counted":              {[]schedExt{{on, "mine", 7}, {on, "mine", 8}}, on},
		"named later":          {[]schedExt{{on, "", 8}, {on, "mine", 8}}, on},
		"failed to be enabled": {[]schedExt{{shm.SchedulerEnabling, "mine", 7}, {going, "mine", 7}, {off, "", 7}}, 0},
		"lost":                 {[]schedExt{{on, "mine", 8}, {off, "", 8}}, shm.SchedulerLost},
		"being lost":           {[]schedExt{{on, "mine", 8}, {going, "mine", 8}}, shm.SchedulerLost},
		"never seen":           {[]schedExt{{off, "", 8}}, shm.SchedulerLost},
		"never seen, replaced": {[]schedExt{{on, "other", 9}}, shm.SchedulerReplaced},
		"replaced, and off":    {[]schedExt{{on, "mine", 8}, {off, "", 9}}, shm.SchedulerReplaced},
		"another of its name":  {[]schedExt{{on, "mine", 8}, {on, "mine", 9}}, shm.SchedulerReplaced},
	} {
		t.Run(name, func(t *testing.T) {
			tenure := tenure{before: 7}
			var got shm.SchedulerPhase
			for _, s := range tc.says {
				got, _ = tenure.see(s)
			}
			if got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

// A kernel that has no word for it, and a scheduler that can't be started.
func TestSchedulerWithoutSchedExt(t *testing.T) {
	j := shellJob("exit 0")
	j.Scheduler = []string{"/no/such/scheduler"}
	got := newGuestFor(t, j).boot()
	all := states(t, got)
	wantMessages(t, without(shm.SchedulerChange, got), code(shm.SchedulerExit, 127))
	last := all[len(all)-1]
	if last.Phase != shm.SchedulerRefused || !strings.Contains(last.Reason, "could not be started") {
		t.Errorf("%+v", all)
	}
	j.Scheduler = []string{"/bin/sh", "-c", forever}
	g := newGuestFor(t, j)
	wantMessages(t, without(shm.SchedulerChange, g.boot()), "SCST ", "SCEN ", code(shm.Exit, 0))
	j.Scheduler = []string{"/bin/sh", "-c", "exit 3"}
	got = newGuestFor(t, j).boot()
	wantMessages(t, without(shm.SchedulerChange, got), code(shm.SchedulerExit, 3))
}

// The agent's threads have a real-time policy while there is a scheduler to watch, and what it starts has not.
func TestRealTime(t *testing.T) {
	g := newScheduled(t, enabled+forever, "exit 0")
	g.write("/proc/self/task/11/comm", "")
	g.write("/proc/self/task/12/comm", "")
	var calls []string
	g.agent.kernel.setRealTime = func(tid int, resets bool) error {
		calls = append(calls, fmt.Sprint(tid, resets))
		return nil
	}
	g.boot()
	if got := strings.Join(calls, " "); got != "11 false 12 false 0 true 0 false 0 true 0 false" {
		t.Error(got)
	}
}

func FuzzLogLine(f *testing.F) {
	for _, s := range []string{
		`6,339,5140900,-;sched_ext: BPF scheduler "simple" enabled`, "4,1,99999999999999999999,-;x", ";", " SUBSYSTEM=x",
		`3,340,8140900,-,caller=T1;sched_ext: BPF scheduler "a" disabled (b)`, "3,1,5,-;sched_ext: a: b: c", "6,1,-4,-;x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, ok := parseLogLine(s)
		if ok && (l.at < 0 || !strings.HasSuffix(s, l.text)) {
			t.Errorf("%q is %+v", s, l)
		}
		var k kernelWords
		k.hear(l)
		k.hear(l)
		if !strings.Contains(s, k.reason) || !strings.Contains(s, k.detail) {
			t.Errorf("%q is %+v", s, k)
		}
	})
}

// The kernel's tracing is a folder, its pipe one that the test writes to.
func TestDumps(t *testing.T) {
	traced := func(text string) string { return "  zz-56  [000] d..1.  8.1: sched_ext_dump: " + text + "\n" }
	g := newScheduled(t, enabled+forever, "echo ready; while [ ! -e $S/end ]; do sleep 0.01; done")
	dir := tracingDir + "/" + tracingInstance
	for _, f := range []string{"buffer_size_kb", "options/overwrite", dumpEvent + "/enable", "per_cpu/cpu0/stats"} {
		g.write(dir+"/"+f, "")
	}
	g.write(tracingDir+"/"+dumpEvent+"/enable", "0")
	if err := unix.Mkfifo(g.path(dir, "trace_pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(g.path(dir, "trace_pipe"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	var dumps []shm.DumpPiece
	wrote := false
	g.on = func(m string) {
		if m == "STDO ready\n" {
			g.write(dir+"/per_cpu/cpu0/stats", "entries: 4\ndropped events: 2\n")
			text := traced("Debug dump triggered by SysRq-D") + traced("") + traced("CPU states") + "CPU:0 [LOST 3 EVENTS]\n" +
				traced("kworker[9] triggered exit kind 1026:") + traced("  runnable task stall (zz)")
			if _, err := pipe.WriteString(text); err != nil {
				t.Error(err)
			}
			wrote = true
		}
		if p, ok := strings.CutPrefix(m, "SXDP "); ok {
			d, err := shm.DecodeDumpPiece([]byte(p))
			if err != nil {
				t.Error(err)
			}
			d.Text = []byte(string(d.Text))
			dumps = append(dumps, d)
			if d.Number == 2 {
				g.write("/sys/kernel/sched_ext/end", "")
			}
		}
	}
	g.boot()
	texts := map[uint32]string{}
	for _, d := range dumps {
		texts[d.Number] += string(d.Text)
	}
	if texts[1] != "Debug dump triggered by SysRq-D\n\nCPU states\n" ||
		texts[2] != "kworker[9] triggered exit kind 1026:\n  runnable task stall (zz)\n"+
			"[2 lines had no room in the kernel's trace buffer]\n" || !wrote {
		t.Errorf("%q, %q", texts[1], texts[2])
	}
	if got := g.read(dir+"/"+dumpEvent+"/enable") + " " + g.read(dir+"/options/overwrite"); got != "1 0" {
		t.Error(got)
	}
}

// A dump is sent up to a limit, and what is cut is counted.
func TestLongDump(t *testing.T) {
	var sent, omitted int
	d := &dumps{most: shm.MaxDumpPiece}
	d.send = func(_ context.Context, p shm.DumpPiece) error {
		if len(p.Encode()) != 8+len(p.Text) {
			t.Errorf("a piece of %d bytes is cut", len(p.Text))
		}
		sent += len(p.Text)
		omitted += int(p.Omitted)
		return nil
	}
	lines := 0
	texts := append([]string{"Debug dump triggered by SysRq-D"}, strings.Fields(strings.Repeat("x ", 1<<18))...)
	for _, text := range texts {
		d.take(t.Context(), "a: "+dumpMark+text)
		lines += len(text) + 1
	}
	d.sendText(t.Context())
	if sent > dumpLimit || sent < dumpLimit-shm.MaxDumpPiece || sent+omitted != lines {
		t.Errorf("%d bytes were sent and %d omitted of %d", sent, omitted, lines)
	}
}
