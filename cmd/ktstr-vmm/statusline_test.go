package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hinshun/vt10x"
	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// screen is what a terminal shows. It does with output what a terminal's driver does.
type screen struct{ vt10x.Terminal }

func newScreen(rows, columns int) screen { return screen{vt10x.New(vt10x.WithSize(columns, rows))} }

func (s screen) Write(p []byte) (int, error) {
	_, err := s.Terminal.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n")))
	return len(p), err
}

func (s screen) lines() []string { return strings.Split(s.String(), "\n") }

// randomOutput is what a command may write to a terminal, in pieces that end anywhere.
func randomOutput(r *rand.Rand, styled, moves bool) (pieces [][]byte) {
	words := []string{"word", "\n", "\n", "\nline\n", strings.Repeat("long ", 30), "é€", "\t", "50%\r", "\a", "\b", " ",
		"\r\n"}
	if styled {
		words = append(words, "\x1b[31m", "\x1b[1;44m", "\x1b[0m", "\x1b[m", "\x1b[mclean\n", "\x1b[K", "\x1b[38;5;0m")
	}
	if moves {
		words = append(words, "\x1b[A", "\x1b[H\x1b[2J", "\x1b]0;title\a", "\x1b7", "\x1b8", "\x1b[3;7H", "\x1b[?25l",
			"\x1bM")
	}
	var all []byte
	for range 1 + r.IntN(60) {
		all = append(all, words[r.IntN(len(words))]...)
	}
	for len(all) > 0 {
		n := min(len(all), 1+r.IntN(20))
		pieces = append(pieces, all[:n])
		all = all[n:]
	}
	return pieces
}

// Whatever is written, the screen shows that and the status line, which is only where nothing else is, and at the end
// exactly what was written. The terminal may be tiny, and change its size.
func TestStatusLineLeavesNoResidue(t *testing.T) {
	seed := chaosSeed(t)
	shown := 0
	for i := range 1000 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		rows, columns := 1+r.IntN(12), 5+r.IntN(90)
		with, without := newScreen(rows, columns), newScreen(rows, columns)
		size := func() (int, int) { return columns, rows }
		l := &statusLine{terminal: with, size: size, ours: func() bool { return true }, output: newOutputState()}
		out := l.above(with)
		for _, p := range randomOutput(r, r.IntN(2) == 0, r.IntN(3) == 0) {
			for range r.IntN(3) {
				text := strings.Repeat(fmt.Sprint(i%10), 1+r.IntN(120))
				l.say(func(int) string { return text })
			}
			if r.IntN(4) == 0 {
				l.drawn = time.Time{} // long ago
			}
			if n, err := out.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			without.Write(p)
			if l.there {
				shown++
			}
			compareScreens(t, seed, i, l, with, without)
			if r.IntN(10) == 0 {
				rows, columns = 1+r.IntN(12), 5+r.IntN(90)
				with.Resize(columns, rows)
				without.Resize(columns, rows)
			}
		}
		l.over = true
		l.erase()
		compareScreens(t, seed, i, l, with, without)
	}
	if shown < 300 {
		t.Errorf("the line was there %d times", shown)
	}
}

// compareScreens compares all but the status line.
func compareScreens(t *testing.T, seed uint64, i int, l *statusLine, with, without screen) {
	t.Helper()
	got, want := with.lines(), without.lines()
	if l.there {
		y := without.Cursor().Y
		if strings.TrimSpace(want[y]) != "" {
			t.Fatalf("seed %d, case %d: the status line is over %q", seed, i, want[y])
		}
		got[y] = want[y]
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b || with.Cursor() != without.Cursor() {
		t.Fatalf("seed %d, case %d: the screen is\n%s\nwant\n%s\ncursors %+v, %+v", seed, i, a, b, with.Cursor(),
			without.Cursor())
	}
}

// A terminal that is stuck holds up nobody but who writes to it, and the line's end no longer than it is given.
func TestStatusLineOfAStuckTerminal(t *testing.T) {
	r, w := io.Pipe() // nobody reads
	size := func() (int, int) { return 80, 24 }
	l := &statusLine{terminal: w, size: size, ours: func() bool { return true }, output: newOutputState(),
		ended: make(chan struct{}), stop: make(chan struct{})}
	written := make(chan error, 1)
	go func() {
		_, err := l.above(w).Write([]byte("stuck\n"))
		written <- err
	}()
	for l.mu.TryLock() { // until it writes
		l.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	l.say(func(int) string { return "not shown" })
	l.end(10 * time.Millisecond)
	r.Close()
	if err := <-written; err == nil {
		t.Error("it was written")
	}
}

func TestStatusText(t *testing.T) {
	s := run.Status{Phase: run.PhaseCommand, Elapsed: 12345 * time.Millisecond, Timeout: time.Minute,
		Ring:         monitor.Stats{},
		LastStimulus: &run.Stimulus{StimulusEvent: shm.StimulusEvent{StepIndex: 2, ElapsedMS: 151}}}
	s.Ring.Messages, s.Ring.Drops = 100, 3
	var r rate
	r.add(s)
	for columns, want := range map[int]string{
		200: "command    12s of 1m0s  8 messages/s  3 drops  STIM step 2 at 151 ms",
		50:  "command    12s of 1m0s  8 messages/s  3 drops",
		30:  "command    12s of 1m0s",
		20:  "command  ",
	} {
		if got := statusText(s, r, columns); got != want {
			t.Errorf("%d columns: %q", columns, got)
		}
	}
}

// statusOf makes a run whose guest says this, on a terminal, and returns what was written to it, also to be looked at
// as a screen.
func statusOf(t *testing.T, set func(*options), open func(p *pty) (stdout, stderr *os.File),
	says func(*talker, context.Context) error) (text string, code int) {
	t.Helper()
	terminal := newPTY(t, 6, 60, nil)
	stdout, stderr := open(terminal)
	o := newOptions(config.Run)
	o.Accel, o.Memory, o.ShmSize, o.Timeout = "emulator", 16<<20, 64<<10, hangLimit
	o.Exporter = config.ExporterNone
	set(o)
	command := &cobra.Command{}
	command.SetContext(t.Context())
	command.SetOut(stdout)
	command.SetErr(stderr)
	cfg := run.Config{NewMachine: func(cfg vm.Config) (run.Machine, error) { return newTalker(cfg, says) }}
	err := o.run(command, cfg, func(func(string, ...any)) (vm.Config, io.Closer, error) {
		return vm.Config{Kernel: x86.ELF{}}, io.NopCloser(nil), nil
	})
	if exit, ok := err.(*exitError); ok {
		code = exit.code
	}
	end := "\x1b]end\a"
	if _, err := terminal.slave.WriteString(end); err != nil {
		t.Fatal(err)
	}
	terminal.until("all read", func(text string) bool { return strings.HasSuffix(text, end) })
	return strings.TrimSuffix(terminal.text(), end), code
}

var statusShown = regexp.MustCompile(`command    \d+s of 30s  `)

// A command's output on a terminal has the status line below while it comes, and is all that is there at the end. There
// is no line where it is not wanted, or might get between what others write.
func TestStatusLine(t *testing.T) {
	t.Setenv("TERM", "xterm")
	output := []string{"first ", "line\n", "\x1b[31mred\x1b[0m\n", "a line without an end", " \xe2\x82", "\xac\n", "last"}
	says := func(g *talker, ctx context.Context) error {
		for i, p := range output {
			time.Sleep(300 * time.Millisecond) // somebody is to see the line
			typ := []shm.Type{shm.Stdout, shm.Stderr}[i%2]
			if err := g.writer.WriteWait(ctx, typ, []byte(p)); err != nil {
				return err
			}
			if err := g.writer.WriteWait(ctx, shm.ScenarioStart, nil); err != nil {
				return err
			}
		}
		code := shm.EncodeCode(0)
		return g.writer.WriteWait(ctx, shm.Exit, code[:])
	}
	both := func(p *pty) (stdout, stderr *os.File) { return p.slave, p.slave }
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	reader, pipe, err := os.Pipe() // which has room for all
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close(); reader.Close(); pipe.Close() }) // when the parallel ones have ended
	all := strings.Join(output, "")
	var stderr string
	for i := 1; i < len(output); i += 2 {
		stderr += output[i]
	}
	for name, c := range map[string]struct {
		set   func(*options)
		open  func(p *pty) (stdout, stderr *os.File)
		want  string
		shown bool
	}{
		"terminal": {func(*options) {}, both, all, true},
		"file":     {func(*options) {}, func(p *pty) (_, _ *os.File) { return file, p.slave }, stderr, true},
		"pipe":     {func(*options) {}, func(p *pty) (_, _ *os.File) { return pipe, p.slave }, stderr, false},
		"quiet":    {func(o *options) { o.Quiet = true }, both, all, false},
		"tty":      {func(o *options) { o.TTY = true }, both, all, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, code := statusOf(t, c.set, c.open, says)
			if code != 0 || statusShown.MatchString(text) != c.shown {
				t.Errorf("exit code %d, %q", code, text)
			}
			got, want := newScreen(6, 60), newScreen(6, 60)
			got.Terminal.Write([]byte(text))
			want.Write([]byte(c.want))
			if got.String() != want.String() || got.Cursor() != want.Cursor() {
				t.Errorf("the screen is\n%s\nwant\n%s", got, want)
			}
			if c.shown && text == c.want || !c.shown && text != strings.ReplaceAll(c.want, "\n", "\r\n") {
				t.Errorf("%q", text)
			}
		})
	}
}

// tmux is a real terminal emulator, which lays out lines anew when its size changes.
type tmux struct {
	t            *testing.T
	path, socket string
}

// newTmux starts one with a program in it.
func newTmux(t *testing.T, program ...string) *tmux {
	t.Helper()
	x := &tmux{t, testenv.Tool(t, "tmux"), t.TempDir() + "/socket"}
	x.do(append([]string{"new-session", "-d", "-x", "90", "-y", "20"}, program...)...)
	t.Cleanup(func() { exec.Command(x.path, "-S", x.socket, "kill-server").Run() })
	return x
}

func (x *tmux) do(args ...string) string {
	x.t.Helper()
	cmd := exec.CommandContext(x.t.Context(), x.path, append([]string{"-S", x.socket, "-f", "/dev/null"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm", "TMUX=", "PS1=$ ")
	out, err := cmd.CombinedOutput()
	if err != nil {
		x.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// wait waits for this on the terminal, and returns all that is there.
func (x *tmux) wait(what string) string {
	x.t.Helper()
	for deadline := time.Now().Add(hangLimit); ; time.Sleep(20 * time.Millisecond) {
		text := x.do("capture-pane", "-p", "-J", "-S", "-")
		if strings.Contains(text, what) {
			return text
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("no %q on\n%s", what, text)
		}
	}
}

// The real program in a terminal whose size changes.
func TestStatusLineInTmux(t *testing.T) {
	t.Parallel()
	testenv.Emulator(t)
	x := newTmux(t, "sh", "-c",
		// What is above the line is more than a split of it takes: tmux lets a screen's first lines go.
		`echo 1; echo 2; echo 3; `+program(t)+` demo --accel emulator --scenario ok,steps=12,step_ms=250
		echo "it ended with $?"; read -r line`)
	x.wait(" messages/s  0 drops")
	for _, size := range [][2]string{{"40", "20"}, {"100", "4"}, {"25", "8"}, {"90", "20"}} {
		x.do("resize-window", "-x", size[0], "-y", size[1])
		time.Sleep(250 * time.Millisecond)
	}
	text := x.wait("it ended with 0")
	message := regexp.MustCompile(`^ +\d+\.\d{3}s  (SCST|SCEN|EXIT|STIM|TEST|PMET|RAWO)\b`)
	summary := regexp.MustCompile(`^(exited: the guest exited with code 0|  (exit code|duration|messages|drops) .*|` +
		`it ended with 0|[123]|)$`)
	seen := 0
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if message.MatchString(line) {
			seen++
		} else if !summary.MatchString(line) {
			t.Errorf("residue: %q", line)
		}
	}
	if seen != 18 {
		t.Errorf("%d messages are shown:\n%s", seen, text)
	}
}

// Ctrl-Z takes the line away, and a run in the background leaves the shell's prompt alone.
func TestStatusLineOfAJob(t *testing.T) {
	t.Parallel()
	testenv.Emulator(t)
	x := newTmux(t, testenv.Tool(t, "bash"), "--norc", "--noprofile")
	file := t.TempDir() + "/pid"
	x.do("send-keys", "PS1='$ '; clear; "+program(t)+" demo --accel emulator --scenario hang", "Enter")
	x.wait(" messages/s  0 drops")
	x.do("send-keys", "C-z")
	if text := x.wait("Stopped"); strings.Contains(text, "messages/s") || strings.Contains(text, "^Z") {
		t.Errorf("stopped:\n%s", text)
	}
	x.do("send-keys", "jobs -p >"+file+"; clear; echo wri''tten; fg", "Enter")
	x.wait("written")
	x.wait(" messages/s  0 drops")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGSTOP) // which leaves the line where it is
	}
	if err != nil {
		t.Fatal(err)
	}
	x.wait("Stopped")
	x.do("send-keys", "clear; bg", "Enter")
	time.Sleep(3 * statusPeriod) // the prompt is there all the time
	x.do("send-keys", "kill %1; wait; echo ov''er", "Enter")
	if text := x.wait("over\n"); !strings.Contains(text, "\n$ kill %1;") {
		t.Errorf("no prompt:\n%s", text)
	}
}

// Without a terminal a run says nothing of how it stands unless it is verbose, and quiet ones say nothing at all.
func TestStatusInALog(t *testing.T) {
	t.Parallel()
	testenv.Emulator(t)
	path := program(t)
	output := func(args ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := exec.Command(path, append([]string{"demo", "--accel", "emulator"}, args...)...)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		code = ends(t, cmd)
		return out.String(), errOut.String(), code
	}
	if out, errOut, code := output("--quiet"); out != "" || errOut != "" || code != 0 {
		t.Errorf("quiet: exit code %d, %q, %q", code, out, errOut)
	}
	if out, errOut, code := output("--quiet", "--scenario", "fail"); out != "" || code != 3 ||
		!strings.HasPrefix(errOut, "\nexited: the guest exited with code 3\n") {
		t.Errorf("quiet, failing: exit code %d, %q, %q", code, out, errOut)
	}
	if out, errOut, code := output("--quiet", "--report", "-"); !strings.HasPrefix(out,
		"\nexited: the guest exited with code 0\n") || errOut != "" || code != 0 {
		t.Errorf("quiet, with a report: exit code %d, %q, %q", code, out, errOut)
	}
	if _, errOut, _ := output("--scenario", "ok,step_ms=300"); strings.Contains(errOut, "status:") {
		t.Errorf("%q", errOut)
	}
}

// What a verbose run says in the log of how it stands.
func TestVerboseStatus(t *testing.T) {
	t.Parallel()
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	_, code := statusOf(t, func(o *options) { o.Verbose = true },
		func(*pty) (stdout, stderr *os.File) { return log, log },
		func(g *talker, ctx context.Context) error {
			time.Sleep(2 * statusPeriod)
			if err := g.writer.WriteWait(ctx, shm.ScenarioStart, nil); err != nil {
				return err
			}
			time.Sleep(4 * statusPeriod)
			code := shm.EncodeCode(0)
			return g.writer.WriteWait(ctx, shm.Exit, code[:])
		})
	text, err := os.ReadFile(log.Name())
	want := regexp.MustCompile(`\tinfo\tstatus: boot \d+s of 30s .*\n.*\tinfo\tstatus: command \d+s of 30s `)
	if err != nil || code != 0 || !want.Match(text) {
		t.Errorf("exit code %d, %v, %s", code, err, text)
	}
}
