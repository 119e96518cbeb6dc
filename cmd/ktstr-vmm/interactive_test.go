package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/ptytest"
	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/report"
)

// What Ctrl-A is in front of is for us, if we know it.
func TestKeys(t *testing.T) {
	for typed, want := range map[string]struct {
		passed     string
		left       int
		help, bell bool
	}{
		"ls\r\x03":                     {passed: "ls\r\x03"},
		"\x01\x01":                     {passed: "\x01"},
		"a\x01xb":                      {passed: "ab", left: 1},
		"\x01h":                        {help: true},
		"\x01q":                        {passed: "\x01q"},
		strings.Repeat("y", maxKeys+1): {passed: strings.Repeat("y", maxKeys/(4<<10)*(4<<10)), bell: true},
	} {
		var said strings.Builder
		left := 0
		g := &guestTerminal{
			say:       func(format string, args ...any) { fmt.Fprintf(&said, format, args...) },
			interrupt: func(string) { left++ },
		}
		keys := newKeys()
		g.give(keys, nil, nil)
		g.read(io.MultiReader(strings.NewReader(typed), iotest.ErrReader(os.ErrClosed)))
		keys.close()
		passed, err := io.ReadAll(keys)
		if err != nil || string(passed) != want.passed || left != want.left ||
			strings.Contains(said.String(), "leaves") != want.help || strings.Contains(said.String(), "\a") != want.bell {
			t.Errorf("%.20q: %d bytes %.20q passed, left %d times, said %q, %v", typed, len(passed), passed, left, &said, err)
		}
	}
}

// Lines get a CR only while the terminal is raw, and one that they have not.
func TestLineEnds(t *testing.T) {
	var out bytes.Buffer
	var raw atomic.Bool
	l := &lineEnds{w: &out, raw: &raw}
	fmt.Fprint(l, "a\n")
	raw.Store(true)
	fmt.Fprint(l, "b\nc\r")
	fmt.Fprint(l, "\n")
	if got := out.String(); got != "a\nb\r\nc\r\n" {
		t.Errorf("%q", got)
	}
}

// What of stdin is the command's.
func TestOpenInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	closed, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	terminal, _ := ptytest.Open(t)
	for name, tc := range map[string]struct {
		stdin            io.Reader
		interactive, tty bool
		pipe, keys       bool
	}{
		"no file":                  {stdin: strings.NewReader("")},
		"null":                     {stdin: null, interactive: true},
		"closed":                   {stdin: closed, interactive: true},
		"a pipe":                   {stdin: r, pipe: true},
		"a pipe, interactive":      {stdin: r, interactive: true, tty: true, pipe: true},
		"a terminal":               {stdin: terminal, tty: true},
		"a terminal, its lines":    {stdin: terminal, interactive: true, pipe: true},
		"a terminal, all its keys": {stdin: terminal, interactive: true, tty: true, keys: true},
	} {
		s := config.New(config.Run)
		s.Interactive, s.TTY = tc.interactive, tc.tty
		in, err := openInput(tc.stdin, s)
		if err != nil || (in.pipe != nil) != tc.pipe || in.keys != tc.keys || in.given() != (tc.pipe || tc.keys) ||
			in.readsTerminal() != (in.given() && tc.stdin == terminal) {
			t.Errorf("%s: %+v, %v", name, in, err)
		}
		in.close()
	}
}

// A Read that waits ends when the reader is closed; and nothing is lost that comes before.
func TestPollReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p, err := newPollReader(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("text"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := p.Read(buf); err != nil || string(buf[:n]) != "text" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := p.Read(buf)
		ended <- err
	}()
	p.Close()
	select {
	case err := <-ended:
		if err != os.ErrClosed {
			t.Error(err)
		}
	case <-time.After(hangLimit):
		t.Error("the Read has not ended")
	}
}

// Others may read the same file, and have made it nonblocking: each byte comes to one of them, and none sees an error.
func TestPollReaderOfASharedFile(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	defer w.Close()
	const readers, size = 4, 2000
	got := make(chan int, readers)
	for range readers {
		p, err := newPollReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := unix.SetNonblock(fds[0], true); err != nil {
			t.Fatal(err)
		}
		go func() {
			all, err := io.ReadAll(p)
			if err != nil {
				t.Error(err)
			}
			got <- len(all)
		}()
	}
	for range size {
		if _, err := w.Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	sum := 0
	for range readers {
		sum += <-got
	}
	if sum != size {
		t.Errorf("%d bytes came, want %d", sum, size)
	}
}

// A run in a terminal whose kernel does not come: the terminal is raw, and has its settings back after Ctrl-A x, and
// after this program was killed.
func TestTerminalIsGivenBack(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "kernel")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	vmm := program(t)
	for name, end := range map[string]func(*ptytest.Terminal, *exec.Cmd){
		"Ctrl-A x": func(x *ptytest.Terminal, _ *exec.Cmd) { x.Type("\x01x") },
		"SIGTERM":  func(_ *ptytest.Terminal, cmd *exec.Cmd) { _ = cmd.Process.Signal(unix.SIGTERM) },
		// As a panic does, it makes Go's runtime end the program with 2.
		"SIGQUIT": func(_ *ptytest.Terminal, cmd *exec.Cmd) { _ = cmd.Process.Signal(unix.SIGQUIT) },
		"SIGKILL": func(_ *ptytest.Terminal, cmd *exec.Cmd) { _ = cmd.Process.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(vmm, "run", "-it", "--kernel", fifo, "--", "true")
			x := ptytest.Start(t, hangLimit, cmd)
			x.WantSettings(false)
			end(x, cmd)
			code := x.ExitCode()
			x.WantSettings(true)
			if name == "Ctrl-A x" {
				x.Want("interrupted by Ctrl-A x")
			}
			if want := map[string]int{"Ctrl-A x": 130, "SIGTERM": 143, "SIGQUIT": 2, "SIGKILL": -1}[name]; code != want {
				t.Errorf("exit code %d, want %d; %s", code, want, x.Shown())
			}
		})
	}
}

// A terminal that goes away ends the run, even one that ignores SIGHUP: nobody is left who could.
func TestTerminalGoesAway(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "kernel")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `trap "" HUP; exec "$0" run -it --kernel "$1" -- true`, program(t), fifo)
	x := ptytest.Start(t, hangLimit, cmd)
	x.WantSettings(false)
	x.HangUp()
	if code := x.ExitCode(); code != 130 {
		t.Errorf("exit code %d", code)
	}
}

// The guard leaves a terminal alone that somebody else has set meanwhile, such as a shell for its prompt.
func TestGuardAndShell(t *testing.T) {
	p := newPTY(t, 24, 80, nil)
	settings := func() unix.Termios {
		now, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return *now
	}
	set := func(to unix.Termios) {
		if err := unix.IoctlSetTermios(int(p.slave.Fd()), unix.TCSETS, &to); err != nil {
			t.Fatal(err)
		}
	}
	was := guarded{Saved: settings(), Raw: settings()}
	was.Raw.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	shells := was.Raw
	shells.Lflag |= unix.ISIG
	for name, tc := range map[string]struct {
		now, want unix.Termios
		released  bool
	}{
		"killed":                   {now: was.Raw, want: was.Saved},
		"killed, and then a shell": {now: shells, want: shells},
		"released":                 {now: was.Raw, want: was.Raw, released: true},
	} {
		var pipe bytes.Buffer
		if err := binary.Write(&pipe, binary.NativeEndian, was); err != nil {
			t.Fatal(err)
		}
		if tc.released {
			pipe.WriteByte(1)
		}
		set(tc.now)
		if err := restoreWhenOver(&pipe, p.slave); err != nil || settings() != tc.want {
			t.Errorf("%s: %v, %+v, want %+v", name, err, settings(), tc.want)
		}
	}
}

// Who gets the keys next hears of the window's size, which may have changed; and who had them gets no more.
func TestGive(t *testing.T) {
	p := newPTY(t, 24, 80, nil)
	g := &guestTerminal{file: p.slave}
	var sizes []call.WindowSize
	first := newKeys()
	hears := func(size call.WindowSize) { sizes = append(sizes, size) }
	g.give(first, hears, nil)
	p.resize(0, 0) // it does not say
	g.resized()
	p.resize(30, 90)
	g.give(newKeys(), hears, nil)
	if want := []call.WindowSize{{Rows: 24, Cols: 80}, {Rows: 30, Cols: 90}}; !slices.Equal(sizes, want) {
		t.Errorf("%v, want %v", sizes, want)
	}
	if n, err := first.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

// A person at a terminal has all the time that there can be, unless told otherwise.
func TestDeadlineAtATerminal(t *testing.T) {
	p := newPTY(t, 24, 80, nil)
	for args, want := range map[string]time.Duration{"": 365 * 24 * time.Hour, "--timeout=60s": time.Minute} {
		o := newOptions(config.Run)
		c := &cobra.Command{}
		o.register(c)
		if err := c.ParseFlags(strings.Fields("-i " + args)); err != nil {
			t.Fatal(err)
		}
		in, err := openInput(p.slave, o.Settings)
		if err != nil {
			t.Fatal(err)
		}
		in.close()
		if !in.readsTerminal() {
			t.Error("the terminal is not read")
		}
		o.AtTerminal()
		if o.Timeout != want {
			t.Errorf("%q: %v, want %v", args, o.Timeout, want)
		}
	}
}

// A shell's output goes to a stream no faster than that is read.
func TestShowShell(t *testing.T) {
	r, w := io.Pipe()
	out := report.NewStream(w)
	text := strings.Repeat("0123456789abcdef", 1<<20)
	shown := make(chan error, 1)
	go func() { shown <- showShell(t.Context(), out, strings.NewReader(text)) }()
	time.Sleep(50 * time.Millisecond)
	if n := out.Pending(); n > 2*outputLimit {
		t.Errorf("%d bytes wait", n)
	}
	read := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(r)
		read <- all
	}()
	if err := <-shown; err != nil {
		t.Error(err)
	}
	if err := out.Close(t.Context()); err != nil {
		t.Error(err)
	}
	w.Close()
	if got := <-read; string(got) != text {
		t.Errorf("%d bytes were shown, want %d", len(got), len(text))
	}
}
