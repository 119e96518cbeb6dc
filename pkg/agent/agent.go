// Package agent is the guest's side of a run with a Linux kernel: the program that runs as PID 1. It maps the ring,
// sets up what programs expect, runs the command and reports through the ring.
//
// A guest's kernel unpacks it at every boot, so it is small: it avoids packages such as net and encoding/json where a
// few lines are enough.
package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Main runs as PID 1. It never returns: at the end it resets the machine. In any other process it exits at once,
// because that process may be on a host.
func Main() {
	if os.Getpid() != 1 || len(os.Args) == 0 || os.Args[0] != "/init" {
		fmt.Fprintln(os.Stderr, "ktstr-vmm agent: this is /init of a guest and resets its machine; it does nothing elsewhere")
		os.Exit(1)
	}
	end := unix.LINUX_REBOOT_CMD_RESTART
	defer func() { endMachine(end) }()
	a := newAgent("/", os.Stderr, theKernel)
	defer a.reportPanic()
	if err := a.run(context.Background()); err != nil {
		a.crash(err.Error())
	}
	end = a.machineEnd()
}

// crash tells the host, and the console, what kept the agent from its work. Where the ring is full it
// waits for the host to make room, for a time; what the ring can never hold is cut.
func (a *agent) crash(text string) {
	fmt.Fprintf(a.console, "ktstr-vmm agent: %s\n", text)
	if a.writer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.limits.crash)
	defer cancel()
	text = "the guest's agent: " + text
	most := a.writer.Capacity() - shm.MessageHeaderSize
	a.try(a.writer.WriteWait(ctx, shm.Crash, []byte(text[:min(uint64(len(text)), most)])))
}

// endMachine ends the machine by reboot(2), and by the way that the host watches for where that
// fails.
func endMachine(how int) {
	unix.Sync()
	_ = unix.Reboot(how)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {} // the kernel panics where PID 1 ends
}

// agent is the state of PID 1.
type agent struct {
	root    string // what the guest's files are below: "/", but in tests
	console io.Writer
	kernel  kernel
	limits  limits

	job      agentproto.Job
	hostname string
	writer   *shm.Writer
	control  shm.Control
	calls    *call.Guest // nil where the host answers none
	sessions sessions
	reaper   *reaper
	doors    *doors
	running  sync.WaitGroup // the agent's own goroutines

	scheduler *scheduler // nil where none was started

	openDumps sync.Once
	dumps     atomic.Pointer[dumps] // nil where the kernel's can't be read

	stopping chan struct{} // closed when the run is to end before the command does by itself
	stop     sync.Once
	asked    atomic.Value // the os.Signal that asked PID 1 for the end

	sending atomic.Int32  // goroutines that have output which is not in the ring yet
	sent    atomic.Uint64 // pieces of output that are

	exit     sync.Mutex // held while an EXIT is sent
	exitSent bool       // by a door
}

func newAgent(root string, console io.Writer, k kernel) *agent {
	return &agent{root: root, console: console, kernel: k, limits: defaultLimits, stopping: make(chan struct{})}
}

// path returns where a file of the guest is.
func (a *agent) path(elem ...string) string {
	return filepath.Join(append([]string{a.root}, elem...)...)
}

// doorsDir is where the guest's processes find the ways to send messages.
const doorsDir = "/run/ktstr"

// Exit codes as a shell gives them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
	codeSignalled     = 128 // plus the signal's number
)

// run does all of the agent's work. ctx ends in tests only.
func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.running.Wait()
	defer cancel()
	if err := a.mountAll(); err != nil {
		return err
	}
	if err := a.openRing(); err != nil {
		return err
	}
	if err := a.openCalls(); err != nil {
		return err
	}
	text, err := os.ReadFile(a.path(agentproto.JobPath))
	if err != nil {
		return err
	}
	if a.job, err = agentproto.ParseJob(string(text)); err != nil {
		return fmt.Errorf("%s: %w", agentproto.JobPath, err)
	}
	a.setUp()
	a.try(a.spare(true))
	a.reaper = startReaper()
	a.background(func() { a.reaper.run(ctx) })
	a.startWatch(ctx)
	largest := a.writer.Capacity() - shm.MessageHeaderSize
	if a.doors, err = openDoors(a.path(doorsDir), largest, a.sendForDoor, a.warn, a.reportPanic); err != nil {
		return err
	}
	defer a.doors.close()
	if a.calls != nil {
		a.background(func() { a.calls.Run(ctx) })
		a.sessions.ctx, a.sessions.end = context.WithCancel(ctx)
		defer a.endSessions()
		a.sessions.running.Go(a.openSessions)
	}
	if err := a.loadModules(); err != nil {
		return err
	}
	if up, err := a.startScheduler(ctx); err != nil || !up {
		return err
	}
	if err := a.writer.WriteWait(ctx, shm.ScenarioStart, nil); err != nil {
		return err
	}
	code := a.runCommand(ctx)
	a.doors.flush()
	a.dismissScheduler(ctx)
	if d := a.dumps.Load(); d != nil {
		d.flush(ctx)
	}
	if err := a.writer.WriteWait(ctx, shm.ScenarioEnd, nil); err != nil {
		return err
	}
	return a.sendExit(ctx, code)
}

// background runs f in a goroutine.
func (a *agent) background(f func()) {
	a.running.Go(func() {
		defer a.reportPanic()
		f()
	})
}

// sendForDoor sends a message of one of the guest's processes.
func (a *agent) sendForDoor(ctx context.Context, t shm.Type, payload []byte) error {
	if t != shm.Exit {
		return a.writer.WriteWait(ctx, t, payload)
	}
	a.exit.Lock()
	defer a.exit.Unlock()
	err := a.writer.WriteWait(ctx, t, payload)
	a.exitSent = a.exitSent || err == nil
	return err
}

// sendExit reports the command's exit code. The host takes the last EXIT, and a process that sent one
// by a door has had the last word; where somebody asked PID 1 for the machine's end, nobody knows how
// the command would have ended.
func (a *agent) sendExit(ctx context.Context, code int) error {
	a.exit.Lock()
	defer a.exit.Unlock()
	if a.exitSent {
		return nil
	}
	if s, ok := a.asked.Load().(unix.Signal); ok {
		a.warn(fmt.Errorf("the guest was asked to end, by %s to PID 1: the command's exit code %d is no result",
			unix.SignalName(s), code))
		return nil
	}
	payload := shm.EncodeCode(int32(code))
	return a.writer.WriteWait(ctx, shm.Exit, payload[:])
}

// complain says on the console what went wrong but keeps nobody from going on.
func (a *agent) complain(err error) { fmt.Fprintf(a.console, "ktstr-vmm agent: %v\n", err) }

// warn tells the command's user, too.
func (a *agent) warn(err error) {
	a.complain(err)
	a.try(a.writer.WriteWait(context.Background(), shm.Stderr, fmt.Appendf(nil, "ktstr-vmm: %v\n", err)))
}

func (a *agent) try(err error) {
	if err != nil {
		a.complain(err)
	}
}

// reportPanic is deferred by each of the agent's goroutines: its own panic is the guest's crash.
func (a *agent) reportPanic() {
	if a.panicked(recover()) {
		endMachine(unix.LINUX_REBOOT_CMD_RESTART)
	}
}

func (a *agent) panicked(p any) bool {
	if p != nil {
		a.crash(fmt.Sprintf("panic: %v\n%s", p, debug.Stack()))
	}
	return p != nil
}
