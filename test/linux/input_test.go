//go:build linuxbed

package linux

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/ptytest"
)

// dialogue is a run in a terminal, which can be asked from beside it.
type dialogue struct {
	asked
	*ptytest.Terminal
	cmd *exec.Cmd
}

// interactive starts a run in a terminal, without a deadline for it. A test that fails says where its run is.
func interactive(t *testing.T, args ...string) dialogue {
	t.Helper()
	d := dialogue{asked: asked{t, t.TempDir()}}
	run := runArgs(append([]string{"--control", d.socket(), "--console", filepath.Join(d.dir, "console")}, args...)...)
	at := slices.Index(run, "--timeout")
	d.cmd = exec.Command(vmm, slices.Delete(run, at, at+2)...)
	d.cmd.Env = append(os.Environ(), "TERM=vt100")
	d.Terminal = ptytest.Start(t, 4*time.Minute, d.cmd)
	t.Cleanup(func() {
		d.explain()
		if t.Failed() {
			_ = d.cmd.Process.Signal(syscall.SIGQUIT) // Go's runtime says what each goroutine does
			time.Sleep(time.Second)
			console, _ := os.ReadFile(filepath.Join(d.dir, "console"))
			t.Logf("terminal:\n%s\nconsole:\n%s", d.Shown(), console)
		}
	})
	return d
}

// ends waits for the run's end.
func (d dialogue) ends(want int) {
	d.t.Helper()
	if code := d.ExitCode(); code != want {
		d.t.Errorf("exit code %d, want %d; %q", code, want, d.Shown())
	}
	d.WantSettings(true)
}

// What is piped into a run comes to its command, to the end, byte for byte.
func TestStdin(t *testing.T) {
	t.Parallel()
	most := 100 << 20
	if testing.Short() {
		most = 4 << 20
	}
	for _, size := range []int{0, 1, most} {
		cmd := exec.Command(vmm, runArgs("--", "busybox", "cat")...)
		sum, out := sha256.New(), sha256.New()
		cmd.Stdin, cmd.Stdout = io.TeeReader(&repeated{text: bytesOf(3), left: size}, sum), out
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		start := time.Now()
		if err := cmd.Run(); err != nil || !bytes.Equal(sum.Sum(nil), out.Sum(nil)) {
			t.Errorf("%d bytes: %v, other bytes came out: %s", size, err, stderr.Bytes())
		}
		t.Logf("%d bytes in %v, the boot included", size, time.Since(start))
	}
}

// repeated is a text again and again.
type repeated struct {
	text []byte
	left int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	at := r.left % len(r.text)
	n := copy(p, r.text[at:min(len(r.text), at+r.left)])
	r.left -= n
	return n, nil
}

// A shell in the guest on the user's terminal: its size, Ctrl-C, Ctrl-Z and Ctrl-\ for the command, all the time that
// there can be, help, the shell's exit code.
func TestInteractive(t *testing.T) {
	t.Parallel()
	x := interactive(t, "-it", "--", "busybox", "sh")
	x.Want("# ")
	if status := x.ctl("status"); !strings.Contains(status, " of 8760h0m0s\n") {
		t.Errorf("%s", status)
	}
	x.Type("busybox stty size; echo term=$TERM; busybox tty\n")
	x.Want("33 101")
	x.Want("term=vt100")
	x.Want("/dev/pts/0")
	x.Resize(44, 111)
	x.Type("until busybox stty size | busybox grep '44 111'; do :; done\n")
	x.Want("44 111\r\n")
	for _, key := range []struct{ typed, code, after, shown string }{
		{"\x03", "code 130", "", ""}, {"\x1a", "code 148", "jobs; kill -9 %1\n", "Stopped"}, {"\x1c", "code 131", "", ""},
	} {
		interrupts(x.Terminal, key.typed)
		x.Type("echo \"code $?\"\n")
		x.Want(key.code)
		x.Type(key.after)
		x.Want(key.shown)
	}
	x.Type("\x01h")
	x.Want("leaves")
	x.Type("exit 7\n")
	x.ends(7)
}

// A guest that dies under a raw terminal gives it back.
func TestInteractiveEnds(t *testing.T) {
	t.Parallel()
	x := interactive(t, "-it", "--", "busybox", "sh")
	x.Want("# ")
	x.Type("echo c > /proc/sysrq-trigger\n")
	x.ends(122)
}

// A command that fails leaves the user at a shell, for as long as that takes. Ctrl-A x leaves it, and the command's
// code counts.
func TestShellOnFailure(t *testing.T) {
	t.Parallel()
	x := interactive(t, "--shell-on-failure", "--", "busybox", "sh", "-c", "echo so''far; exit 3")
	x.Want("sofar")
	x.Want("# ")
	x.Type("echo in $((40 + 2))\n")
	x.Want("in 42")
	if strings.Contains(x.Shown(), "timeout") {
		t.Errorf("%q", x.Shown())
	}
	_ = x.cmd.Process.Signal(syscall.SIGWINCH) // and whoever sends it
	x.Type("\x01x")
	x.ends(3)
}
