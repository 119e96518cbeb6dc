package agent

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// What the kernel says of sched_ext schedulers: Linux 6.12 and later, where it is configured
// (kernel/sched/ext.c, scx_global_attrs and scx_sched_attrs).
const (
	schedExtState     = "/sys/kernel/sched_ext/state"
	schedExtOps       = "/sys/kernel/sched_ext/root/ops" // the name of the scheduler in charge; absent: there is none
	schedExtEnableSeq = "/sys/kernel/sched_ext/enable_seq"
	schedExtHotplug   = "/sys/kernel/sched_ext/hotplug_seq"
	schedExtRejected  = "/sys/kernel/sched_ext/nr_rejected"
	schedExtSwitchAll = "/sys/kernel/sched_ext/switch_all"
)

// The words in state: kernel/sched/ext.c, scx_ops_enable_state_str.
var schedExtPhases = map[string]shm.SchedulerPhase{
	"enabling":  shm.SchedulerEnabling,
	"enabled":   shm.SchedulerEnabled,
	"disabling": shm.SchedulerDisabling,
	"disabled":  shm.SchedulerDisabled,
}

// schedExt is what the kernel says of sched_ext at one moment.
type schedExt struct {
	phase     shm.SchedulerPhase
	ops       string
	enableSeq uint64
}

// readTries is how often the files are read for a moment in which no scheduler was enabled meanwhile.
const readTries = 4

// readSchedExt reads what the kernel says of sched_ext. The files are read one after the other: a state from before a
// scheduler was enabled and a count from after it would say that it was thrown out. So the count is read before and
// after the others, and ok is false where it did not stay the same, or a file has nothing that can be read.
func (a *agent) readSchedExt() (s schedExt, ok bool) {
	seq, err := strconv.ParseUint(a.kernelSays(schedExtEnableSeq), 10, 64)
	for range readTries {
		if err != nil {
			return s, false
		}
		s = schedExt{phase: schedExtPhases[a.kernelSays(schedExtState)], ops: a.kernelSays(schedExtOps), enableSeq: seq}
		if seq, err = strconv.ParseUint(a.kernelSays(schedExtEnableSeq), 10, 64); err == nil && seq == s.enableSeq {
			return s, s.phase != 0
		}
	}
	return s, false
}

// schedExtFiles are the files whose content tells that there is something new to read. They are kept open: that costs
// less than to open them at each look.
type schedExtFiles struct {
	fds       [2]int
	now, last [2][32]byte
}

func (a *agent) openSchedExt() (*schedExtFiles, error) {
	f := &schedExtFiles{fds: [2]int{-1, -1}}
	for i, path := range []string{schedExtState, schedExtEnableSeq} {
		fd, err := unix.Open(a.path(path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			f.close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		f.fds[i] = fd
	}
	return f, nil
}

// changed reports whether one of them has another content than when seen was called.
func (f *schedExtFiles) changed() bool {
	for i, fd := range f.fds {
		f.now[i] = [32]byte{}
		if _, err := unix.Pread(fd, f.now[i][:], 0); err != nil {
			return true
		}
	}
	return f.now != f.last
}

// seen takes the content that changed has read for known.
func (f *schedExtFiles) seen() { f.last = f.now }

func (f *schedExtFiles) close() {
	for _, fd := range f.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// state is what a guest's kernel says, as a message has it.
func (a *agent) state(s schedExt) shm.SchedulerState {
	number := func(path string) uint64 {
		n, _ := strconv.ParseUint(a.kernelSays(path), 10, 64) // 0 where the kernel has no such file
		return n
	}
	return shm.SchedulerState{
		Time: sinceBoot(), Phase: s.phase, EnableSeq: s.enableSeq, Ops: s.ops, HotplugSeq: number(schedExtHotplug),
		Rejected: number(schedExtRejected), SwitchAll: a.kernelSays(schedExtSwitchAll) == "1",
	}
}

// sinceBoot is the time since the guest's boot, by the clock that the kernel's log is near to.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// tenure is a scheduler's time in charge, as the kernel's words tell it.
type tenure struct {
	before  uint64 // enable_seq before it was started
	enabled bool   // it is in charge, or was
	ops     string // its name, from then on
}

// see takes what the kernel says now. It returns the phase to which the scheduler under test has come, of
// SchedulerEnabled, SchedulerLost and SchedulerReplaced, and 0 where it is in none of them, with a reason for the last
// one. The kernel says "enabled" a moment before it counts that (scx_ops_enable), so only the count tells whose that
// is; and a "disabled" is an end only where the count says that there was something to end.
func (t *tenure) see(s schedExt) (phase shm.SchedulerPhase, reason string) {
	switch n := s.enableSeq - t.before; {
	case n == 0:
		return 0, ""
	case n > 1:
		return shm.SchedulerReplaced, t.successor(s)
	case s.phase == shm.SchedulerEnabled && t.ops != "" && s.ops != "" && s.ops != t.ops:
		return shm.SchedulerReplaced, t.successor(s)
	case s.phase == shm.SchedulerEnabled:
		if !t.enabled || t.ops == "" {
			t.enabled, t.ops = true, s.ops
		}
		return shm.SchedulerEnabled, ""
	case s.phase == shm.SchedulerEnabling:
		return 0, "" // the next one; it is counted when it is in charge
	}
	t.enabled = true
	return shm.SchedulerLost, ""
}

// successor says what came after the scheduler under test.
func (t *tenure) successor(s schedExt) string {
	if s.ops != t.ops {
		return fmt.Sprintf("was replaced: %s was %q and is %q", schedExtOps, t.ops, s.ops)
	}
	return fmt.Sprintf("was replaced: %q was enabled once more, %s is %d and was %d", s.ops, schedExtEnableSeq,
		s.enableSeq, t.before+1)
}

// kernelWords are what the kernel's log has said of a scheduler's end.
type kernelWords struct {
	noticed time.Duration // when it said so, since boot
	reason  string        // "runnable task stall"; "": nothing was said yet
	detail  string        // "zz[56] failed to run for 2.918s"
}

// Reasons that are no errors: kernel/sched/ext.c, scx_exit_reason. The first is that of a scheduler that its own
// process took back, or whose process ended.
const (
	unregisteredByUser = "unregistered from user space"
	unregistered       = "unregistered from "
)

// thrownOut reports whether the kernel found the scheduler at fault, or somebody asked it to end it.
func (k kernelWords) thrownOut() bool {
	return k.reason != "" && !strings.HasPrefix(k.reason, unregistered)
}

func (k kernelWords) String() string {
	text := "(" + k.reason + ")"
	if k.detail != "" {
		text += ": " + k.detail
	}
	return text
}

// hear takes a line of the kernel's log. Of several ends the first counts: kernel/sched/ext.c, scx_ops_disable_workfn.
func (k *kernelWords) hear(l logLine) {
	text, ok := strings.CutPrefix(l.text, "sched_ext: ")
	if !ok {
		return
	}
	if strings.HasPrefix(text, `BPF scheduler "`) {
		_, reason, ok := strings.Cut(text, `" disabled (`)
		if ok && k.reason == "" {
			k.reason, k.noticed = strings.TrimSuffix(reason, ")"), l.at
		}
		return
	}
	// The line behind that one: the scheduler's name, and what happened.
	if _, detail, ok := strings.Cut(text, ": "); ok && k.reason != "" && k.detail == "" {
		k.detail = detail
	}
}
