package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

const (
	// escape is the key before those that are for us: Ctrl-A, as in QEMU and screen.
	escape = 'A' - '@'
	// promptLimit is how long a guest may take to start a shell whose command has failed.
	promptLimit = 10 * time.Second
	promptPause = 10 * time.Millisecond
)

const keysHelp = "\n  Ctrl-A x       leaves: %s\n  Ctrl-A h       shows this\n" +
	"  Ctrl-A Ctrl-A  sends a Ctrl-A\n"

// guestTerminal is the user's terminal while its keys are a guest's.
type guestTerminal struct {
	file      *os.File
	say       func(format string, args ...any)
	interrupt func(by string) // ends the run at once, or what else there is to leave
	leaving   string          // what Ctrl-A x does, for help; "": the run ends
	raw       *atomic.Bool    // whether lines need a CR

	mu     sync.Mutex
	keys   *keys                      // who gets them; nil: nobody
	leave  func() bool                // what Ctrl-A x does first, and reports whether there was something to do
	resize func(size call.WindowSize) // what hears of the window's size; nil: nobody
	active *rawTerminal               // nil: it is as it was
	closed bool                       // and stays so
}

// leaveRequest stands for a SIGINT where the terminal's user ends the run: it says how.
type leaveRequest string

// Signal implements os.Signal.
func (leaveRequest) Signal() {}

// String implements os.Signal.
func (l leaveRequest) String() string { return string(l) }

// rawTerminal is a terminal that passes on each key.
type rawTerminal struct {
	saved   *unix.Termios
	guard   *guard
	reader  *pollReader
	running sync.WaitGroup
}

// connect connects this process's stdin with the guest's command. It returns what gives the terminal back.
func (s *session) connect(cfg *run.Config) (giveBack func()) {
	if !s.linux {
		return func() {}
	}
	calls := &run.Calls{}
	cfg.Calls = calls
	if s.input.pipe != nil {
		calls.Stdin = s.input.pipe
	}
	if s.input.terminal == nil || !s.input.keys && !s.prompts() {
		return s.input.close
	}
	t := &guestTerminal{
		file: s.input.terminal, raw: &s.raw,
		say: func(format string, args ...any) { fmt.Fprintf(s.stderr, format, args...) },
		interrupt: func(by string) {
			for range 2 { // the second one does not wait for the guest
				select {
				case s.signals <- leaveRequest(by):
				default: // it has had enough
				}
			}
		},
	}
	if s.input.keys {
		typed := newKeys()
		calls.Stdin = typed
		calls.OnReady = func(h *call.Host) { t.give(typed, h.Resize, nil) }
		if err := t.makeRaw(); err != nil {
			s.fail(fmt.Sprintf("the terminal can't be the guest's, so the command's input ends: %v", err))
			typed.close()
		}
	}
	if s.prompts() {
		calls.Prompt = func(ctx context.Context, h *call.Host, code int) {
			if err := t.prompt(ctx, h, code, s.promptOutput()); err != nil && ctx.Err() == nil {
				s.fail(fmt.Sprintf("no shell in the guest: %v", err))
			}
		}
	}
	return func() {
		s.input.close()
		t.close()
	}
}

// prompts reports whether there is a shell if the command fails.
func (s *session) prompts() bool {
	return s.ShellOnFailure && s.input.terminal != nil && s.promptOutput() != nil
}

// promptOutput is the stream to the user's terminal; nil: there is none.
func (s *session) promptOutput() *report.Stream {
	switch {
	case isTerminal(s.stdoutFile):
		return s.stdout
	case isTerminal(s.stderrFile):
		return s.stderr
	}
	return nil
}

// prompt lets the user type into a shell in the guest.
func (t *guestTerminal) prompt(ctx context.Context, h *call.Host, code int, out *report.Stream) error {
	opening, cancel := context.WithTimeout(ctx, promptLimit)
	defer cancel()
	size := t.size()
	shell, err := h.Open(opening, call.Program{Term: os.Getenv("TERM"), Rows: size.Rows, Cols: size.Cols})
	if err != nil {
		return err
	}
	defer shell.Close()
	typed := newKeys()
	defer typed.close()
	var once sync.Once
	t.give(typed, func(size call.WindowSize) { shell.Resize(size.Rows, size.Cols) }, func() (left bool) {
		once.Do(func() { left = shell.Close() == nil })
		return left
	})
	wasRaw := t.isRaw()
	t.say("ktstr-vmm: the command has failed with code %d; this is a shell in its guest: exit or Ctrl-A x ends the run\n",
		code)
	if err := t.makeRaw(); err != nil {
		return err
	}
	go func() { _, _ = io.Copy(shell, typed) }() // until the keys or the shell end
	err = showShell(ctx, out, shell)
	if !wasRaw {
		t.restore()
	}
	return err
}

// showShell copies what a shell says to a stream, no faster than that is read.
func showShell(ctx context.Context, out *report.Stream, shell io.Reader) error {
	buf := make([]byte, 4<<10)
	for {
		n, err := shell.Read(buf)
		for n > 0 && !out.TryWrite(buf[:n], outputLimit) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(promptPause):
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// give says who gets the keys from now on, hears of the window, and is left by Ctrl-A x before the run is ended.
// Whoever had the keys before gets no more.
func (t *guestTerminal) give(to *keys, resize func(call.WindowSize), leave func() bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys != nil {
		t.keys.close()
	}
	t.keys, t.resize, t.leave = to, resize, leave
	t.sayWindow() // it may have changed since it was asked last
}

// size is the window's.
func (t *guestTerminal) size() call.WindowSize { return windowSize(t.file) }

// windowSize is the size of a terminal's window; 0 if it has not said.
func windowSize(f *os.File) call.WindowSize {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return call.WindowSize{}
	}
	return call.WindowSize{Rows: size.Row, Cols: size.Col}
}

func (t *guestTerminal) isRaw() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.active != nil
}

// makeRaw makes the terminal pass on each key, Ctrl-C too: cfmakeraw(3). Whatever ends this process, the terminal gets
// its settings back.
func (t *guestTerminal) makeRaw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active != nil || t.closed {
		return nil
	}
	fd := int(t.file.Fd())
	saved, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	r := &rawTerminal{saved: saved}
	if r.reader, err = newPollReader(t.file); err != nil {
		return err
	}
	raw := *saved
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if r.guard, err = startGuard(t.file, guarded{*saved, raw}); err != nil {
		r.reader.Close()
		return err
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		r.reader.Close()
		r.guard.release()
		return err
	}
	t.raw.Store(true)
	t.active = r
	windows := make(chan os.Signal, 1)
	signal.Notify(windows, syscall.SIGWINCH)
	done := make(chan struct{})
	r.running.Go(func() {
		defer close(done)
		t.read(r.reader)
	})
	r.running.Go(func() {
		defer signal.Stop(windows)
		for {
			select {
			case <-done:
				return
			case <-windows:
				t.resized()
			}
		}
	})
	return nil
}

func (t *guestTerminal) resized() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sayWindow()
}

// sayWindow tells who wants to know the window's size, if the terminal has one. t.mu is held.
func (t *guestTerminal) sayWindow() {
	if t.resize == nil {
		return
	}
	if size := t.size(); size != (call.WindowSize{}) {
		t.resize(size)
	}
}

// restore gives the terminal its settings back, and reads no more of its keys.
func (t *guestTerminal) restore() {
	t.mu.Lock()
	r := t.active
	t.active = nil
	if r != nil {
		// What was typed stays: it is for who reads the terminal next.
		_ = unix.IoctlSetTermios(int(t.file.Fd()), unix.TCSETS, r.saved)
		t.raw.Store(false)
		r.guard.release()
	}
	t.mu.Unlock()
	if r != nil {
		r.reader.Close()
		r.running.Wait()
	}
}

// close restores the terminal for good.
func (t *guestTerminal) close() {
	t.mu.Lock()
	t.closed = true
	if t.keys != nil {
		t.keys.close()
	}
	t.mu.Unlock()
	t.restore()
}

// read passes on keys, but for those that are for us.
func (t *guestTerminal) read(from io.Reader) {
	buf, escaped := make([]byte, 4<<10), false
	for {
		n, err := from.Read(buf)
		var typed []byte
		for _, b := range buf[:n] {
			switch {
			case !escaped && b == escape:
				escaped = true
				continue
			case escaped && (b == 'x' || b == 'X'):
				t.left()
			case escaped && (b == 'h' || b == 'H' || b == '?'):
				t.say(keysHelp, cmp.Or(t.leaving, "the run ends"))
			case escaped && b != escape: // for somebody else after all
				typed = append(typed, escape, b)
			default:
				typed = append(typed, b)
			}
			escaped = false
		}
		t.pass(typed)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) { // the terminal is gone, and who could have ended the run
				t.interrupt("the end of the terminal")
			}
			return
		}
	}
}

func (t *guestTerminal) pass(typed []byte) {
	t.mu.Lock()
	to := t.keys
	t.mu.Unlock()
	if len(typed) > 0 && (to == nil || !to.put(typed)) {
		t.say("\a")
	}
}

// left is what Ctrl-A x does.
func (t *guestTerminal) left() {
	t.mu.Lock()
	leave := t.leave
	t.mu.Unlock()
	if leave == nil || !leave() {
		t.interrupt("Ctrl-A x")
	}
}

// lines is where text goes whose lines end as they usually do.
func (s *session) lines(w io.Writer) io.Writer {
	if !isTerminal(w) {
		return w
	}
	return &lineEnds{w: w, raw: &s.raw}
}

// toStdout is where the output goes. That of a terminal in the guest is for a terminal as it is.
func (s *session) toStdout() io.Writer {
	if s.TTY {
		return s.stdoutFile
	}
	return s.lines(s.stdoutFile)
}

// lineEnds writes text to a terminal. While that is raw, it needs a CR before each LF.
type lineEnds struct {
	w    io.Writer
	raw  *atomic.Bool
	last byte
}

// Write implements io.Writer.
func (l *lineEnds) Write(p []byte) (int, error) {
	if !l.raw.Load() {
		return l.w.Write(p)
	}
	var b bytes.Buffer
	for _, c := range p {
		if c == '\n' && l.last != '\r' {
			b.WriteByte('\r')
		}
		b.WriteByte(c)
		l.last = c
	}
	if _, err := l.w.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}
