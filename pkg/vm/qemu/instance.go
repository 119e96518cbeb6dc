package qemu

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

const (
	// alivePoll is how often the host looks whether the firmware runs, until it does.
	alivePoll = 200 * time.Microsecond
	// drainLimit bounds how long what a dead child wrote is waited for.
	drainLimit = 2 * time.Second
)

// instance is a machine that a child process emulates. The child starts at once and waits in the firmware
// for Start, so that its start and the loading of RAM go side by side.
type instance struct {
	vm.FirstSign // the firmware was seen to run

	platform platform
	stop     func(error)
	pinned   []int  // as in vm.Spec
	mem      []byte // all of the RAM, the memfd that the child has too
	regions  []guestmem.Region
	guest    *guestmem.Memory
	cmd      *exec.Cmd
	stderr   head
	counter  counter
	cpus     int
	monitor  *monitor
	killed   atomic.Bool
	entered  chan guestmem.Uint32 // Start's word to the firmware, when the state is there
	reaped   chan struct{}        // closed when the child is gone
	ended    chan struct{}        // closed when all that it said has been read, too
}

// New implements vm.Backend.
func (b Backend) New(s vm.Spec, stop func(error)) (vm.Instance, error) {
	p, err := platformOf(s.Board)
	if err != nil {
		return nil, err
	}
	if err := p.check(s.Topology); err != nil {
		return nil, err
	}
	path, err := b.find(p)
	if err != nil {
		return nil, err
	}
	mode, err := threads(path, p, s)
	if err != nil {
		return nil, err
	}
	m := &instance{platform: p, stop: stop, pinned: s.Pin, cpus: s.Topology.CPUs(), entered: make(chan guestmem.Uint32, 1),
		reaped: make(chan struct{}), ended: make(chan struct{})}
	size, offset := p.place(s.Layout)
	mem, ram, err := guestmem.MapShared("ktstr-ram", size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: mapping %d bytes of guest RAM: %w", vm.ErrSetup, vm.ErrRoom, size, err)
	}
	defer ram.Close()
	m.mem = mem
	for _, span := range s.Layout.Spans() {
		m.regions = append(m.regions, guestmem.Region{Base: span.Base, Mem: mem[offset(span):][:span.Size]})
	}
	if m.guest, err = guestmem.New(m.regions...); err == nil {
		err = m.spawn(path, ram, append(p.args(size, s.Topology, mode), monitorArgs...), s)
	}
	if err != nil {
		guestmem.Unmap(mem)
		return nil, err
	}
	return m, nil
}

// spawn starts the child and the goroutines that wait for it.
func (m *instance) spawn(path string, ram *os.File, args []string, s vm.Spec) error {
	rom, firmware, err := guestmem.MapShared("ktstr-firmware", uint64(len(m.platform.firmware())))
	if err != nil {
		return fmt.Errorf("%w: the firmware: %w", vm.ErrSetup, err)
	}
	copy(rom, m.platform.firmware())
	guestmem.Unmap(rom)
	defer firmware.Close()
	console, consoleEnd, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%w: %w", vm.ErrSetup, err)
	}
	why, events, eventsEnd, err := m.platform.listen()
	if err != nil {
		closeAll([]*os.File{console, consoleEnd})
		return fmt.Errorf("%w: %w", vm.ErrSetup, err)
	}
	pipes, ends, to := []*os.File{console, events}, []*os.File{consoleEnd, eventsEnd}, []io.Writer{s.Console, why}
	bell, bellEnd, err := newBellPipe(s.Bell)
	if err != nil {
		closeAll(append(pipes, ends...))
		return fmt.Errorf("%w: %w", vm.ErrSetup, err)
	}
	monitor, monitorEnd, err := newMonitor()
	if err != nil {
		closeAll(append(append(pipes, ends...), bellEnd))
		bell.close()
		return fmt.Errorf("%w: QEMU's monitor: %w", vm.ErrSetup, err)
	}
	m.monitor = monitor
	pipes, to = append(pipes, monitor.conn), append(to, monitor)
	ends = append(ends, bellEnd, monitorEnd)
	m.cmd = exec.Command(path, args...)
	m.cmd.ExtraFiles = append([]*os.File{ram, firmware}, ends...)
	m.cmd.Stderr = &m.stderr
	m.cmd.WaitDelay = drainLimit
	// Its own process group: a terminal's Ctrl-C is for us, who ask the guest to stop.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	m.counter.begin()
	started := make(chan error)
	go func() {
		// The signal at a parent's death is about the thread that forks, which stays until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := startDeaf(m.cmd)
		closeAll(ends)
		started <- err
		if err == nil {
			m.reap(pipes, to, why, bell)
		}
	}()
	if err := <-started; err != nil {
		closeAll(pipes)
		bell.close()
		return fmt.Errorf("%w: %s: %w", vm.ErrSetup, path, err)
	}
	return nil
}

// startDeaf starts a process that the signals do not reach by which a job is asked to end: batch systems and systemd
// send them to all of its processes. They are for us, who ask the guest to stop. QEMU handles them, but does not
// unblock them. It must be called on a locked thread, whose mask the child inherits.
func startDeaf(cmd *exec.Cmd) error {
	var deaf, before unix.Sigset_t
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		deaf.Val[0] |= 1 << (s - 1)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &deaf, &before); err != nil {
		return err
	}
	err := cmd.Start()
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) // fails for bad arguments alone
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing waits in them to be written
	}
}

// reap passes on what the child writes, waits for it, and says why it ended.
func (m *instance) reap(pipes []*os.File, to []io.Writer, why listener, bell *bellPipe) {
	var readers sync.WaitGroup
	readers.Go(func() { bell.listen(m.reaped) })
	for i, p := range pipes {
		readers.Go(func() {
			_, _ = io.Copy(to[i], p) // what it can't take is lost, and no reason to end a guest
			_ = p.Close()
		})
	}
	readers.Go(func() { m.letGo(why) })
	_ = m.cmd.Wait() // ProcessState says more
	close(m.reaped)
	for _, p := range pipes {
		_ = p.SetReadDeadline(time.Now().Add(drainLimit))
	}
	readers.Wait()
	if !m.killed.Load() {
		m.stop(m.whyEnded(why))
	}
	close(m.ended)
}

// letGo waits for the firmware's sign of life, and then lets it go on as soon as Start says so. It is one after the
// other: what runs next has all of the RAM, and may do away with the sign before anybody has seen it.
func (m *instance) letGo(why listener) {
	if !m.awaitLife() {
		return
	}
	m.FirstSign.Note()
	if err := m.pin(); err != nil {
		select {
		case <-m.reaped: // there was nothing left to pin
		default:
			m.stop(err)
		}
		return
	}
	select {
	case <-why.ready():
	case <-m.reaped:
		return
	}
	select {
	case word := <-m.entered:
		word.Store(1)
	case <-m.reaped:
	}
}

// awaitLife reports whether the firmware has run, when it has or never will.
func (m *instance) awaitLife() bool {
	alive, err := m.guest.Uint32(m.platform.mailbox(vm.Entry{}).alive)
	if err != nil {
		return false // a board without RAM there has no firmware of ours
	}
	ticker := time.NewTicker(alivePoll)
	defer ticker.Stop()
	for alive.Load() == 0 {
		select {
		case <-m.reaped:
			return alive.Load() != 0 // it may have run and ended since the last look
		case <-ticker.C:
		}
	}
	return true
}

// whyEnded says why the child ended by itself.
func (m *instance) whyEnded(why listener) error {
	state, said := m.cmd.ProcessState, m.stderr.line()
	failed := func(how string) error {
		if said != "" {
			how += ": " + said
		}
		return fmt.Errorf("%w: QEMU (%s, process %d) %s", vm.ErrRun, m.cmd.Path, state.Pid(), how)
	}
	status, _ := state.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled():
		return failed(fmt.Sprintf("was ended by a signal, %v", status.Signal()))
	case strings.Contains(said, "terminating on signal"): // with a success of its own
		return failed("was told to end")
	case !m.FirstExit().IsZero():
		// What QEMU writes beside its own failures, whose status is 1, is a warning.
		if reason := why.ended(status.ExitStatus()); reason != nil &&
			(said == "" || status.ExitStatus() != 1) {
			return reason
		}
	default:
		if _, _, err := checkVersion(m.cmd.Path, m.platform); errors.Is(err, ErrTooOld) {
			return err
		}
		return fmt.Errorf("%w; %v or newer is needed, as distributions build it: %s",
			failed(fmt.Sprintf("refused to start with exit status %d",
				status.ExitStatus())), oldest, howToInstall(m.platform))
	}
	return failed(fmt.Sprintf("ended with exit status %d", status.ExitStatus()))
}

// Regions implements vm.Instance.
func (m *instance) Regions() []guestmem.Region { return m.regions }

// Emulated implements vm.Instance.
func (m *instance) Emulated() bool { return true }

// CounterKHz implements vm.Instance: guests see the host's counter.
func (m *instance) CounterKHz() (uint32, error) { return m.counter.kHz() }

// Start implements vm.Instance: it writes the state that the firmware sets, and lets it go on.
func (m *instance) Start(e vm.Entry) error {
	box := m.platform.mailbox(e)
	if err := m.guest.Write(box.content, box.state); err != nil {
		return fmt.Errorf("%w: the firmware's mailbox: %w", vm.ErrSetup, err)
	}
	start, err := m.guest.Uint32(box.start)
	if err != nil {
		return fmt.Errorf("%w: the firmware's mailbox: %w", vm.ErrSetup, err)
	}
	m.entered <- start // which has room for the one that comes
	return nil
}

// Kill implements vm.Instance.
func (m *instance) Kill() {
	m.killed.Store(true)
	_ = m.cmd.Process.Kill() // which fails only where it has ended
}

// Ended implements vm.Instance.
func (m *instance) Ended() <-chan struct{} { return m.ended }

// Exits implements vm.Instance.
func (m *instance) Exits() iter.Seq2[string, uint64] { return nil }

// Close implements vm.Instance.
func (m *instance) Close() error {
	m.Kill()
	<-m.ended
	guestmem.Unmap(m.mem)
	return nil
}
