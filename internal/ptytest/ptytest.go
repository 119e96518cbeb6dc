// Package ptytest makes terminals for tests, and runs programs in them as a user does.
package ptytest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// Terminal is a program's terminal, and the user in front of it.
type Terminal struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	tty    *os.File
	limit  time.Duration
	before unix.Termios  // its settings
	ended  chan struct{} // closed when cmd was waited for

	mu     sync.Mutex
	shown  bytes.Buffer
	passed int // of what was shown: Want has seen it
}

// lastOutput is how long what a program wrote last may take to be shown.
const lastOutput = 5 * time.Second

// Start starts a command in a new terminal of 33 rows and 101 columns. Whatever waits for it then fails after limit.
// Nobody else may wait for the command.
func Start(t *testing.T, limit time.Duration, cmd *exec.Cmd) *Terminal {
	t.Helper()
	x := &Terminal{t: t, cmd: cmd, limit: limit, ended: make(chan struct{})}
	x.master, x.tty = Open(t)
	x.Resize(33, 101)
	x.before = x.settings()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = x.tty, x.tty, x.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4<<10)
		for {
			n, err := x.master.Read(buf)
			x.mu.Lock()
			x.shown.Write(buf[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(x.ended)
		_ = cmd.Wait() // its state says all
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be over
		<-x.ended
		x.master.Close()
		x.tty.Close()
		<-read
	})
	return x
}

// Open returns a new terminal's two sides, the user's and the programs'. It skips the test where there can be none.
func Open(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testenv.Missing(t, "a pseudoterminal", err)
	}
	t.Cleanup(func() { _ = master.Close() }) // a test may have closed either side
	control(t, master, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0) })
	number := 0
	control(t, master, func(fd int) (err error) {
		number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return master, tty
}

// Resize gives the window of a terminal's user another size.
func Resize(t *testing.T, master *os.File, rows, cols uint16) {
	t.Helper()
	control(t, master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// control asks a terminal for something, and leaves it to the runtime's poller, so that a Close ends a Read.
func control(t *testing.T, master *os.File, f func(fd int) error) {
	t.Helper()
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failure error
	if err := errors.Join(conn.Control(func(fd uintptr) { failure = f(int(fd)) }), failure); err != nil {
		t.Fatal(err)
	}
}

// Resize gives the terminal's window another size.
func (x *Terminal) Resize(rows, cols uint16) { Resize(x.t, x.master, rows, cols) }

// ExitCode waits for the program's end and returns its exit code: -1 if a signal ended it.
func (x *Terminal) ExitCode() int {
	x.t.Helper()
	select {
	case <-x.ended:
	case <-time.After(x.limit):
		x.t.Fatalf("the program goes on, after %v; it has shown %q", x.limit, x.Shown())
	}
	return x.cmd.ProcessState.ExitCode()
}

// Type types on the terminal.
func (x *Terminal) Type(text string) {
	x.t.Helper()
	if _, err := x.master.WriteString(text); err != nil {
		x.t.Fatal(err)
	}
}

// HangUp takes the terminal away, as a connection does that is lost.
func (x *Terminal) HangUp() { x.master.Close() }

// Want waits until a text is shown, behind the one that was wanted before, or the program has ended without it.
func (x *Terminal) Want(text string) {
	x.t.Helper()
	end, ended, state := time.Now().Add(x.limit), x.ended, "goes on"
	for ; !x.shows(text); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			end, ended, state = time.Now().Add(lastOutput), nil, fmt.Sprintf("has ended (%v)", x.cmd.ProcessState)
		default:
		}
		if time.Now().After(end) {
			x.t.Fatalf("the program %s, and no %q is shown in %q", state, text, x.Shown())
		}
	}
}

// shows reports whether a text is there, and passes it.
func (x *Terminal) shows(text string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := strings.Index(x.shown.String()[x.passed:], text)
	if i < 0 {
		return false
	}
	x.passed += i + len(text)
	return true
}

// Shown returns all that was shown so far.
func (x *Terminal) Shown() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.shown.String()
}

// settings returns the terminal's.
func (x *Terminal) settings() unix.Termios {
	x.t.Helper()
	settings, err := unix.IoctlGetTermios(int(x.tty.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return *settings
}

// WantSettings waits until the terminal's settings are those that it had at first, or others.
func (x *Terminal) WantSettings(first bool) {
	x.t.Helper()
	for end := time.Now().Add(x.limit); (x.settings() == x.before) != first; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatalf("the terminal's settings are %+v, and were %+v", x.settings(), x.before)
		}
	}
}
