// Package agent is the guest's side of a run with a Linux kernel: the program that is PID 1. It
// maps the ring, sets up what programs expect, runs the command and reports through the ring.
//
// A guest's kernel unpacks it at every boot, so it is small: it does without packages such as net and
// encoding/json where a few lines will do.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/job"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Main is PID 1. It never returns: at the end the machine is reset. Any other process is ended at
// once, for it may be on a host.
func Main() {
	if os.Getpid() != 1 || len(os.Args) == 0 || os.Args[0] != "/init" {
		fmt.Fprintln(os.Stderr, "ktstr-vmm agent: this is /init of a guest and resets its machine; it does nothing elsewhere")
		os.Exit(1)
	}
	defer reset()
	a := &agent{}
	defer a.reportPanic()
	if err := a.run(); err != nil {
		a.crash(err.Error())
	}
}

// crash tells the host, and the console, what kept the agent from its work.
func (a *agent) crash(text string) {
	fmt.Fprintf(os.Stderr, "ktstr-vmm agent: %s\n", text)
	if a.writer != nil {
		_ = a.writer.TryWrite(shm.Crash, []byte("the guest's agent: "+text))
	}
}

// reset ends the machine by the way that the host watches for.
func reset() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {} // the kernel panics where PID 1 ends
}

// agent is the state of PID 1.
type agent struct {
	job     job.Job
	writer  *shm.Writer
	control shm.Control
	reaper  *reaper
	doors   *doors

	scheduler int // its process, 0 where there is none or it is gone

	sending atomic.Int32  // goroutines that have output which is not in the ring yet
	sent    atomic.Uint64 // pieces of output that are
}

// doorsDir is where the guest's processes find the ways to send messages.
const doorsDir = "/run/ktstr"

// Exit codes as a shell gives them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
	codeSignalled     = 128 // plus the signal's number
)

func (a *agent) run() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := a.openRing(); err != nil {
		return err
	}
	text, err := os.ReadFile(job.Path)
	if err != nil {
		return err
	}
	if a.job, err = job.Parse(string(text)); err != nil {
		return fmt.Errorf("%s: %w", job.Path, err)
	}
	a.reaper = startReaper()
	ctx := context.Background()
	if a.doors, err = openDoors(doorsDir, a.writer.Capacity()-shm.MessageHeaderSize, a.writer.WriteWait, a.warn, a.reportPanic); err != nil {
		return err
	}
	if err := a.startScheduler(ctx); err != nil {
		return err
	}
	if err := a.writer.WriteWait(ctx, shm.ScenarioStart, nil); err != nil {
		return err
	}
	code := a.runCommand(ctx)
	a.doors.flush()
	payload := shm.EncodeCode(int32(code))
	return errors.Join(
		a.writer.WriteWait(ctx, shm.ScenarioEnd, nil),
		a.writer.WriteWait(ctx, shm.Exit, payload[:]),
	)
}

// complain says on the console what went wrong but keeps nobody from going on.
func (a *agent) complain(err error) { fmt.Fprintf(os.Stderr, "ktstr-vmm agent: %v\n", err) }

// warn tells the command's user, too.
func (a *agent) warn(err error) {
	a.complain(err)
	a.try(a.writer.WriteWait(context.Background(), shm.Stderr, fmt.Appendf(nil, "ktstr-vmm: %v\n", err)))
}

// reportPanic is deferred by each of the agent's goroutines: its own panic is the guest's crash.
func (a *agent) reportPanic() {
	if a.panicked(recover()) {
		reset()
	}
}

func (a *agent) panicked(p any) bool {
	if p != nil {
		a.crash(fmt.Sprintf("panic: %v\n%s", p, debug.Stack()))
	}
	return p != nil
}

// reaper waits for all children, as PID 1 has to: its own and those whose parents are gone.
type reaper struct {
	signals chan os.Signal // holds one, so that a child which ends between two looks is not missed
}

type exited struct {
	pid    int
	status unix.WaitStatus
}

func startReaper() *reaper {
	r := &reaper{signals: make(chan os.Signal, 1)}
	signal.Notify(r.signals, unix.SIGCHLD)
	return r
}

// next returns the next child that has ended, or false when ctx does.
func (r *reaper) next(ctx context.Context) (exited, bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == nil && pid > 0 {
			return exited{pid, ws}, true
		}
		select {
		case <-ctx.Done():
			return exited{}, false
		case <-r.signals:
		}
	}
}
