package agent

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// answered gives a guest a call area, and answers its calls until the test ends.
func (g *guest) answered(cfg call.Config) *call.Host {
	g.t.Helper()
	ring, area := shm.Params{Base: ringBase, Size: ringSize}, call.Params{Base: ringBase + ringSize, Size: call.Size}
	g.write("/proc/cmdline", ring.String()+" "+area.String()+"\n")
	cfg.Area = g.area
	h, err := call.NewHost(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	h.Start()
	g.t.Cleanup(h.Stop)
	return h
}

func stdinJob(args ...string) agentproto.Job {
	return agentproto.Job{Args: args, Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: "/there", Stdin: true}
}

// What the host has for the command comes to it, byte for byte, to the end.
func TestStdin(t *testing.T) {
	bulk := bytes.Repeat([]byte("0123456789\x00\xff\n"), 1<<18)
	for name, text := range map[string][]byte{"nothing": {}, "a byte": {'x'}, "lines": []byte("a\nb\n"), "bulk": bulk} {
		t.Run(name, func(t *testing.T) {
			g := newGuestFor(t, stdinJob("/bin/cat"))
			g.answered(call.Config{Stdin: bytes.NewReader(text)})
			got := g.boot()
			wantMessages(t, of(shm.Exit, got), code(shm.Exit, 0))
			if out := output(shm.Stdout, got); out != string(text) {
				t.Errorf("%d bytes came, want %d", len(out), len(text))
			}
		})
	}
}

// A command that takes little of its stdin, or nothing, ends when it ends; or when it is asked to.
func TestStdinThatIsNotRead(t *testing.T) {
	for name, tc := range map[string]struct {
		script, stdout string
		code           int32
	}{
		"a line":     {"head -n 1", "y\n", 0},
		"nothing":    {"exit 3", "", 3},
		"closed":     {"exec <&-; sleep 0.2; exit 4", "", 4},
		"never ends": {"sleep 1000", "", 143},
		"left over":  {"sleep 1000 & exit 5", "", 5},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuestFor(t, stdinJob("/bin/sh", "-c", tc.script))
			g.answered(call.Config{Stdin: yes{}})
			if name == "never ends" {
				g.on = func(string) { _ = g.control.Signal(shm.SlotHost, shm.SignalShutdown) } // the slot is there
			}
			got := g.boot()
			wantMessages(t, of(shm.Exit, got), code(shm.Exit, tc.code))
			if out := output(shm.Stdout, got); out != tc.stdout {
				t.Errorf("stdout %q", out)
			}
		})
	}
}

// yes is a stdin without an end.
type yes struct{}

func (yes) Read(p []byte) (int, error) { return copy(p, strings.Repeat("y\n", len(p)/2)), nil }

// A terminal has the size of the user's window, from the beginning and when that changes; what is typed comes to it,
// and the end of it is the end of its input.
func TestStdinOfATerminal(t *testing.T) {
	j := stdinJob("/bin/sh", "-c", `stty -echo; stty size; trap 'stty size' WINCH; echo up
		while ! read line; do :; done; echo "got $line"; cat`)
	j.TTY, j.Window = true, agentproto.Window{Rows: 33, Cols: 101}
	g := newGuestFor(t, j)
	r, w := io.Pipe()
	h := g.answered(call.Config{Stdin: r})
	said, step := "", 0
	g.on = func(m string) {
		said += strings.TrimPrefix(m, "STDO ")
		switch {
		case step == 0 && strings.Contains(said, "33 101\r\nup\r\n"):
			step++
			h.Resize(call.WindowSize{Rows: 44, Cols: 111})
		case step == 1 && strings.Contains(said, "44 111\r\n"):
			step++
			go func() {
				_, _ = io.WriteString(w, "a line\nand no end")
				_ = w.Close()
			}()
		}
	}
	got := g.boot()
	wantMessages(t, of(shm.Exit, got), code(shm.Exit, 0))
	if out := output(shm.Stdout, got); !strings.Contains(out, "got a line\r\nand no end") {
		t.Errorf("stdout %q", out)
	}
}

// openIn opens a session and types into it, while the guest's command runs.
func openIn(t *testing.T, h *call.Host, p call.Program, typed string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	s, err := h.Open(ctx, p)
	if err != nil {
		t.Error(err)
		return "", -1
	}
	if _, err := io.WriteString(s, typed); err != nil {
		t.Error(err)
	}
	text, err := io.ReadAll(s)
	if err != nil {
		t.Error(err)
	}
	if code, err = s.Wait(ctx); err != nil {
		t.Error(err)
	}
	return string(text), code
}

// Sessions have terminals of their own, and their output is not the command's.
func TestSessions(t *testing.T) {
	g := newGuestFor(t, shellJob("while ! test -e /there/go; do sleep 0.05; done; echo command"))
	j := shellJob("while ! test -e $ROOT/go; do sleep 0.05; done; echo command")
	j.Env = append(j.Env, "ROOT="+g.root, "SHELL=/nowhere")
	g.write(agentproto.JobPath, j.Encode())
	g.write("/bin/sh", "#!/bin/sh\nexec /bin/sh \"$@\"\n") // which is /bin/sh of the guest's folder: see isProgram
	if err := os.Chmod(g.path("/bin/sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := g.answered(call.Config{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, code := openIn(t, h, call.Program{Term: "vt52", Rows: 12, Cols: 34},
			"stty -echo; stty size; echo term=$TERM; test -t 0 && kill -9 $$\n")
		if !strings.Contains(out, "12 34\r\n") || !strings.Contains(out, "term=vt52\r\n") || code != 137 {
			t.Errorf("code %d, %q", code, out)
		}
		out, code = openIn(t, h, call.Program{Args: []string{"/no/such/program"}}, "")
		if !strings.Contains(out, "no such file or directory\r\n") || code != 127 {
			t.Errorf("code %d, %q", code, out)
		}
		g.write("/bin/named", "")
		if err := os.Chmod(g.path("/bin/named"), 0o755); err != nil {
			t.Error(err)
		}
		// Tests have the host's files: what is found in the guest's folder is not what is started.
		out, code = openIn(t, h, call.Program{Args: []string{"named"}}, "")
		if !strings.Contains(out, "/bin/named: no such file or directory\r\n") || code != 127 {
			t.Errorf("code %d, %q", code, out)
		}
		out, code = openIn(t, h, call.Program{Args: []string{"nowhere"}}, "")
		if !strings.Contains(out, "nowhere is not in the guest's PATH") || code != 127 {
			t.Errorf("code %d, %q", code, out)
		}
		ctx, cancel := context.WithTimeout(t.Context(), hangs)
		defer cancel()
		for _, args := range [][]string{{"/bin/cat"}, {"/bin/sh", "-c", "trap '' HUP; while :; do sleep 0.1; done"}} {
			s, err := h.Open(ctx, call.Program{Args: args})
			if err != nil {
				t.Error(err)
				break
			}
			_ = s.Close()
			if code, err := s.Wait(ctx); err != nil || code != 129 && code != 137 {
				t.Errorf("%v that was hung up: code %d, %v", args, code, err)
			}
		}
		if _, err := h.Open(ctx, call.Program{Args: []string{"/bin/sleep", "1000"}}); err != nil { // to the guest's end
			t.Error(err)
		}
		g.write("/go", "")
	}()
	start := time.Now()
	got := g.boot()
	<-done
	wantMessages(t, got, "SCST ", "STDO command\n", "SCEN ", code(shm.Exit, 0))
	if took := time.Since(start); took > hangs/2 {
		t.Errorf("took %v", took)
	}
	if left := g.leftovers(); len(left) != 0 {
		t.Errorf("processes %v are left", left)
	}
}

// openUp opens a session with a script that says when it is up, and returns it then.
func openUp(t *testing.T, ctx context.Context, h *call.Host, script string) *call.Session {
	t.Helper()
	s, err := h.Open(ctx, call.Program{Args: []string{"/bin/sh", "-c", script}})
	if err != nil {
		t.Error(err)
		return nil
	}
	if _, err := io.ReadFull(s, make([]byte, len("up\r\n"))); err != nil {
		t.Error(err)
	}
	return s
}

// A session's program that was hung up has time for its last work, such as a shell's history.
func TestHungUpSession(t *testing.T) {
	g := newGuestFor(t, shellJob("true"))
	j := shellJob("while ! test -e $ROOT/go; do sleep 0.05; done")
	j.Env = append(j.Env, "ROOT="+g.root)
	g.write(agentproto.JobPath, j.Encode())
	h := g.answered(call.Config{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer g.write("/go", "")
		ctx, cancel := context.WithTimeout(t.Context(), hangs)
		defer cancel()
		s := openUp(t, ctx, h, "trap 'sleep 1; exit 7' HUP; echo up; while :; do sleep 0.1; done")
		if s == nil {
			return
		}
		_ = s.Close()
		if code, err := s.Wait(ctx); err != nil || code != 7 {
			t.Errorf("code %d, %v", code, err)
		}
	}()
	wantMessages(t, g.boot(), "SCST ", "SCEN ", code(shm.Exit, 0))
	<-done
}

// A guest that is asked to stop hangs up its sessions while its command ends, not after that.
func TestSessionsOfAGuestThatStops(t *testing.T) {
	g := newGuestFor(t, shellJob("true"))
	j := shellJob("trap 'until test -e $ROOT/hungup; do sleep 0.05; done; exit 5' TERM; echo > $ROOT/ready; " +
		"while :; do sleep 0.05; done")
	j.Env = append(j.Env, "ROOT="+g.root)
	g.write(agentproto.JobPath, j.Encode())
	h := g.answered(call.Config{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(t.Context(), hangs)
		defer cancel()
		openUp(t, ctx, h, "trap 'echo > $ROOT/hungup; exit' HUP; until test -e $ROOT/ready; do sleep 0.05; done; echo up; "+
			"while :; do sleep 0.05; done")
		if err := g.control.Signal(shm.SlotHost, shm.SignalShutdown); err != nil {
			t.Error(err)
		}
	}()
	wantMessages(t, of(shm.Exit, g.boot()), code(shm.Exit, 5))
	<-done
}

// A guest without a shell says so.
func TestNoShell(t *testing.T) {
	g := newGuest(t, "sleep 0.5")
	h := g.answered(call.Config{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if out, code := openIn(t, h, call.Program{}, ""); !strings.Contains(out, "has no shell") || code != 126 {
			t.Errorf("code %d, %q", code, out)
		}
	}()
	g.boot()
	<-done
}

// A guest whose command has failed asks before it ends, unless it is to stop.
func TestPrompt(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		asks   bool
		code   int32
	}{"failed": {"exit 3", true, 3}, "not started": {"", true, 127}, "fine": {"exit 0", false, 0}} {
		t.Run(name, func(t *testing.T) {
			j := shellJob(tc.script)
			if tc.script == "" {
				j.Args = []string{"/no/such/program"}
			}
			j.Prompt = true
			g := newGuestFor(t, j)
			asked := make(chan int, 1)
			g.answered(call.Config{OnEnd: func(_ context.Context, code int) { asked <- code }})
			wantMessages(t, of(shm.Exit, g.boot()), code(shm.Exit, tc.code))
			if asks := len(asked) == 1; asks != tc.asks || asks && <-asked != int(tc.code) {
				t.Errorf("asked: %v", asks)
			}
		})
	}
	t.Run("asked to stop", func(t *testing.T) {
		j := shellJob("exit 3")
		j.Prompt = true
		g := newGuestFor(t, j)
		g.answered(call.Config{OnEnd: func(ctx context.Context, _ int) {
			_ = g.control.Signal(shm.SlotHost, shm.SignalShutdown) // the slot is there
			<-ctx.Done()
		}})
		wantMessages(t, of(shm.Exit, g.boot()), code(shm.Exit, 3))
	})
}
