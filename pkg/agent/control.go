package agent

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// controlPoll is how often the control bytes are looked at.
const controlPoll = 10 * time.Millisecond

// ends are the signals by which a system's first process is asked for the system's end, and what
// reboot(2) is told then: busybox's reboot sends TERM, its halt USR1, its poweroff USR2; INT is
// Ctrl-Alt-Del, PWR a power supply's. A machine that is halted would run on, so it is powered off.
var ends = map[os.Signal]int{
	unix.SIGTERM: unix.LINUX_REBOOT_CMD_RESTART,
	unix.SIGINT:  unix.LINUX_REBOOT_CMD_RESTART,
	unix.SIGHUP:  unix.LINUX_REBOOT_CMD_RESTART,
	unix.SIGQUIT: unix.LINUX_REBOOT_CMD_RESTART,
	unix.SIGUSR1: unix.LINUX_REBOOT_CMD_POWER_OFF,
	unix.SIGUSR2: unix.LINUX_REBOOT_CMD_POWER_OFF,
	unix.SIGPWR:  unix.LINUX_REBOOT_CMD_POWER_OFF,
}

// noFaults are signals at which Go's runtime ends a program, even where another process sent them.
// They mean nothing to PID 1.
var noFaults = []os.Signal{
	unix.SIGABRT, unix.SIGTRAP, unix.SIGSYS, unix.SIGSTKFLT, unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL,
}

// machineEnd is how the machine is to end, for reboot(2).
func (a *agent) machineEnd() int {
	if s, ok := a.asked.Load().(os.Signal); ok {
		return ends[s]
	}
	return unix.LINUX_REBOOT_CMD_RESTART
}

// startWatch makes a goroutine that does what the host asks for by the control bytes, and what the guest's
// processes ask PID 1 for by signals, until ctx ends. Signals that come when it has returned are heard.
func (a *agent) startWatch(ctx context.Context) {
	asked, nobody := make(chan os.Signal, 1), make(chan os.Signal, 1)
	for s := range ends {
		signal.Notify(asked, s)
	}
	signal.Notify(nobody, noFaults...)
	a.background(func() {
		defer signal.Stop(asked)
		defer signal.Stop(nobody)
		a.watch(ctx, asked)
	})
}

func (a *agent) watch(ctx context.Context, asked <-chan os.Signal) {
	tick := time.NewTicker(controlPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-asked:
			a.asked.CompareAndSwap(nil, s)
			a.askToStop()
		case <-tick.C:
			a.answerControl(ctx)
			if a.calls != nil {
				a.calls.Poll()
			}
		}
	}
}

// askToStop asks for the command's end.
func (a *agent) askToStop() { a.stop.Do(func() { close(a.stopping) }) }

// answerControl looks at the control bytes once.
func (a *agent) answerControl(ctx context.Context) {
	if a.control.TakeDump() {
		a.watchDumps(ctx)
		a.try(os.WriteFile(a.path("/proc/sysrq-trigger"), []byte("D"), 0))
	}
	if a.control.TakeStall() {
		a.try(os.WriteFile(a.path("/tmp/ktstr_stall"), nil, 0o644))
	}
	if v, err := a.control.Read(shm.SlotHost); err == nil && v == shm.SignalShutdown {
		a.askToStop()
	}
}
