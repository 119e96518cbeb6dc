//go:build linuxbed

package linux

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/ptytest"
)

// idle is where a kernel's idle CPU is, such as native_safe_halt, default_idle or cpu_do_idle.
var idle = regexp.MustCompile(`^CPU 0: .*pc \w*(halt|idle)\w*\+0x`)

// asked is a run that others ask by its control socket.
type asked struct {
	t   *testing.T
	dir string
}

func (a asked) socket() string { return filepath.Join(a.dir, "run.sock") }

func (a asked) command(args ...string) *exec.Cmd {
	return a.commandUntil(context.Background(), args...)
}

func (a asked) commandUntil(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, vmm, append([]string{"ctl", "--control", a.socket()}, args...)...)
}

// ctl asks, and returns what was printed.
func (a asked) ctl(args ...string) string {
	a.t.Helper()
	out, err := a.command(args...).Output()
	if err != nil {
		a.t.Errorf("ctl %q: %v, %s", args, err, out)
	}
	return string(out)
}

// explain says what the run does whose test has failed.
func (a asked) explain() {
	if !a.t.Failed() {
		return
	}
	for _, args := range [][]string{
		{"status"}, {"tail"}, {"registers"},
		{"shell", "--", "busybox", "sh", "-c",
			"for p in /proc/[0-9]*; do test ! -e $p/exe || busybox grep . $p/comm $p/task/*/stack; done"},
	} {
		ctx, done := context.WithTimeout(context.Background(), 30*time.Second)
		out, _ := a.commandUntil(ctx, args...).CombinedOutput() // the run may be over
		done()
		a.t.Logf("ctl %s:\n%s", args[0], out)
	}
}

// follower is a process that follows the run.
type follower struct {
	*exec.Cmd
	out string // a file
}

func (a asked) follow(args ...string) follower {
	a.t.Helper()
	f := follower{a.command(args...), filepath.Join(a.dir, strings.Join(args, ""))}
	out, err := os.Create(f.out)
	if err != nil {
		a.t.Fatal(err)
	}
	defer out.Close()
	f.Stdout, f.Stderr = out, out
	if err := f.Start(); err != nil {
		a.t.Fatal(err)
	}
	return f
}

func (f follower) printed() string {
	text, _ := os.ReadFile(f.out)
	return string(text)
}

// until waits for a text in what is printed.
func (a asked) until(text string, printed func() string) {
	a.t.Helper()
	out := ""
	for limit := time.Now().Add(2 * time.Minute); !strings.Contains(out, text); time.Sleep(100 * time.Millisecond) {
		if out = printed(); time.Now().After(limit) {
			a.t.Fatalf("no %q in\n%s", text, out)
		}
	}
}

// idles looks at the registers until the guest is idle, as it is most of the time, or once if its kernel has no names.
func (a asked) idles(nameless bool) {
	a.t.Helper()
	for limit := time.Now().Add(2 * time.Minute); ; {
		text := a.ctl("registers")
		if idle.MatchString(text) || nameless && strings.HasPrefix(text, "CPU 0: ") {
			return
		}
		if time.Now().After(limit) {
			a.t.Fatalf("never idle:\n%s", text)
		}
	}
}

// interrupts starts a command in a terminal's shell and types a key that ends or stops it. What the shell says then,
// its prompt too, may be lost: Linux throws away the output that is under way when it has sent the signal (isig in
// drivers/tty/n_tty.c).
func interrupts(x *ptytest.Terminal, key string) {
	x.Type("busybox sh -c \"echo be''gun; exec busybox sleep 1000\"\n") // not the shell, which Ctrl-C would not end
	x.Want("begun")
	x.Type(key)
}

// visits has sessions in the guest: one on a terminal, and one by pipes.
func (a asked) visits() {
	a.t.Helper()
	cmd := a.command("shell")
	cmd.Env = append(os.Environ(), "TERM=vt100")
	x := ptytest.Start(a.t, 2*time.Minute, cmd)
	x.Want("# ")
	x.WantSettings(false)
	x.Type("busybox stty size; echo term=$TERM\n")
	x.Want("33 101")
	x.Want("term=vt100")
	x.Resize(44, 111)
	x.Type("until busybox stty size | busybox grep '44 111'; do :; done\n")
	x.Want("44 111\r\n")
	interrupts(x, "\x03")
	x.Type("echo \"code $?\"\n")
	x.Want("code 130")
	x.Type("\x01h")
	x.Want("leaves: the run goes on")
	x.Type("exit 7\n")
	if code := x.ExitCode(); code != 7 {
		a.t.Errorf("the shell: exit code %d, %q", code, x.Shown())
	}
	x.WantSettings(true)

	cmd = a.command("shell")
	x = ptytest.Start(a.t, 2*time.Minute, cmd)
	x.Want("# ")
	x.Type("\x01x")
	if code := x.ExitCode(); code != 129 {
		a.t.Errorf("left: exit code %d, %q", code, x.Shown())
	}
	x.WantSettings(true)

	cmd = a.command("shell", "--", "busybox", "sh", "-c", "read line; echo \"got $line\"; busybox cat; exit 3")
	cmd.Stdin = strings.NewReader("one\ntwo")
	out, _ := cmd.CombinedOutput()
	if text := string(out); cmd.ProcessState.ExitCode() != 3 || !strings.Contains(text, "got one\r\n") ||
		!strings.HasSuffix(text, "two") {
		a.t.Errorf("by pipes: exit code %d, %q", cmd.ProcessState.ExitCode(), out)
	}
}

// A running guest is asked all that can be asked, and told to stop. Who follows it gets to its end what it says last.
func TestControl(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "control") // short, for the socket's address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	a, file := asked{t, dir}, filepath.Join(dir, "report.json")
	run := exec.Command(vmm, runArgs("--control", a.socket(), "--report", file, "--report-format", "json", "--",
		"busybox", "sh", "-c", `
			trap "echo 'TEST {\"name\":\"asked\",\"passed\":true}' > $KTSTR_MESSAGES; exit 0" TERM
			echo "TEST {\"release\":\"$(busybox uname -r)\"}" > $KTSTR_MESSAGES
			echo 'STIM {"step_index":1}' > $KTSTR_MESSAGES
			echo to the console > /dev/console
			while :; do echo to stdout; busybox sleep 0.2; done`)...)
	var said bytes.Buffer
	run.Stderr = &said
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	defer run.Process.Kill()
	defer a.explain()
	a.until("STIM  step 1 ", func() string {
		out, _ := a.command("tail").CombinedOutput() // at first there is no socket
		return string(out) + said.String()
	})

	kept, output, console := a.follow("tail", "-f"), a.follow("tail", "-f", "--type", "STDO"), a.follow("console", "-f")
	a.until("STDO", output.printed)
	a.until("to the console", console.printed)
	status := a.ctl("status")
	for _, part := range []string{"phase       command, after ", arch + " on ", "last STIM   step 1 ", "STDO "} {
		if !strings.Contains(status, part) {
			t.Errorf("no %q in\n%s", part, status)
		}
	}
	if text := a.ctl("metrics"); !strings.Contains(text, `ktstr_vmm_ring_messages_total{type="STIM"} 1`) {
		t.Errorf("metrics: %s", text)
	}
	ring := filepath.Join(dir, "ring")
	if err := os.WriteFile(ring, []byte(a.ctl("ring")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(vmm, "inspect", "--all", ring).CombinedOutput()
	if !strings.Contains(string(out), "STIM  24 bytes") {
		t.Errorf("inspect of the ring: %v, %s", err, out)
	}
	release := regexp.MustCompile(`"release":"(.*?)"`).FindStringSubmatch(a.ctl("tail"))
	if release == nil {
		t.Fatal("no message has the kernel's release")
	}
	a.idles(unreadable(release[1]))
	a.visits()
	for _, args := range [][]string{{"dump"}, {"stall"}, {"signal", "1", "7"}, {"stop"}} {
		a.ctl(args...)
	}

	if err := run.Wait(); run.ProcessState.ExitCode() != 143 {
		t.Errorf("%v, %s", err, &said)
	}
	var r struct {
		Reason string
		Events []struct{ Kind string }
	}
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"dump_request", "stall_request", "signal", "stop"} {
		if !strings.Contains(fmt.Sprint(r.Events), kind) {
			t.Errorf("no %s in %v", kind, r.Events)
		}
	}
	for _, f := range []follower{kept, output, console} {
		if err := f.Wait(); err != nil || !strings.Contains(f.printed(), "is over: interrupted: "+r.Reason) {
			t.Errorf("%q: %v, %s", f.Args, err, f.printed())
		}
	}
	if !strings.Contains(kept.printed(), `TEST  {"name":"asked","passed":true}`) {
		t.Errorf("no last message in\n%s", kept.printed())
	}
}
