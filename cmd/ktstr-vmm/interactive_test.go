package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/ptytest"
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
			interrupt: func() { left++ },
		}
		keys := newKeys()
		g.give(keys, nil, nil)
		g.read(strings.NewReader(typed))
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
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
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
		if err != nil || (in.pipe != nil) != tc.pipe || in.keys != tc.keys || in.given() != (tc.pipe || tc.keys) {
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

// A run in a terminal whose kernel does not come: the terminal is raw, and has its settings back after Ctrl-A x, and
// after this program was killed.
func TestTerminalIsGivenBack(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "kernel")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(*ptytest.Terminal, *exec.Cmd){
		"Ctrl-A x": func(x *ptytest.Terminal, _ *exec.Cmd) { x.Type("\x01x") },
		"SIGTERM":  func(_ *ptytest.Terminal, cmd *exec.Cmd) { _ = cmd.Process.Signal(unix.SIGTERM) },
		// As a panic does, it makes Go's runtime end the program with 2.
		"SIGQUIT": func(_ *ptytest.Terminal, cmd *exec.Cmd) { _ = cmd.Process.Signal(unix.SIGQUIT) },
		"SIGKILL": func(_ *ptytest.Terminal, cmd *exec.Cmd) { _ = cmd.Process.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(program(t), "run", "-it", "--kernel", fifo, "--", "true")
			x := ptytest.Start(t, hangLimit, cmd)
			x.WantSettings(false)
			end(x, cmd)
			code := ends(t, cmd)
			x.WantSettings(true)
			if want := map[string]int{"Ctrl-A x": 130, "SIGTERM": 143, "SIGQUIT": 2, "SIGKILL": -1}[name]; code != want {
				t.Errorf("exit code %d, want %d; %s", code, want, x.Shown())
			}
		})
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
