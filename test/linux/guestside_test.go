//go:build linuxbed

package linux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the command leaves behind is ended, and holds nobody up.
func TestLeftoverChild(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"that prints": "(while :; do echo x; busybox sleep 0.1; done) & exit 0",
		"that ignores TERM, and session": "echo x; " +
			"busybox setsid busybox sh -c 'trap \"\" TERM; while :; do echo x; busybox sleep 0.1; done' & exit 0",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, r := reported(t, "--", "busybox", "sh", "-c", script)
			if e.code != 0 || r.Outcome != "exited" || !strings.HasPrefix(string(e.stdout), "x\n") {
				t.Errorf("exit code %d, stdout %.200q, %s", e.code, e.stdout, e.stderr)
			}
		})
	}
}

// Who asks PID 1 for the system's end gets one, in order, and it is no verdict.
func TestOrderlyEnd(t *testing.T) {
	t.Parallel()
	for ask, says := range map[string]string{
		"busybox reboot":   "SIGTERM to PID 1",
		"busybox poweroff": "the guest powered the machine off",
		"kill -QUIT 1":     "SIGQUIT to PID 1",
	} {
		t.Run(ask, func(t *testing.T) {
			t.Parallel()
			e, r := reported(t, "--", "busybox", "sh", "-c",
				"trap 'echo bye; exit 0' TERM; "+ask+"; while :; do busybox sleep 0.1; done")
			said := strings.Contains(string(e.stderr), says)
			if e.code != 120 || r.Outcome != "no_verdict" || string(e.stdout) != "bye\n" || !said {
				t.Errorf("exit code %d, stdout %q, %s\n%+v", e.code, e.stdout, e.stderr, r)
			}
		})
	}
	t.Run("kill -ABRT 1 asks for nothing", func(t *testing.T) {
		t.Parallel()
		vmmRun(t, "--", "busybox", "sh", "-c", "kill -ABRT 1; echo fine; exit 3").want(t, 3, "fine\n")
	})
}

// A scheduler that ends when the command has, while its last output is awaited, is gone all the same.
func TestSchedulerExitWithCommand(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "scheduler")
	if err := os.WriteFile(script, []byte("echo $$ > /tmp/scheduler.pid\nexec busybox sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	e, r := reported(t, "--include", script, "--scheduler", "busybox sh "+script, "--",
		"busybox", "sh", "-c",
		"until test -s /tmp/scheduler.pid; do busybox sleep 0.1; done; read scheduler < /tmp/scheduler.pid; "+
			// It starts no program, which on a slow machine takes longer than the output is awaited.
			"(while kill -0 $$; do :; done; kill -9 $scheduler; exec busybox sleep 1000) & exit 0")
	if e.code != 121 || r.SchedulerExit == nil || r.SchedulerExit.Code == nil || *r.SchedulerExit.Code != 137 {
		t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
	}
}

// likeAHost does what tests do on a host: they serve to themselves, and ask who they are.
func likeAHost() error {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "localhost:0"} {
		l, err := net.Listen("tcp", listen)
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		if err := errors.Join(c.Close(), l.Close()); err != nil {
			return err
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "served")
	}))
	defer server.Close()
	answer, err := http.Get(server.URL)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	who, err := user.Current()
	if err != nil {
		return err
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	_, err = net.LookupHost("no.such.host.example")
	var unknown *net.DNSError
	if !errors.As(err, &unknown) {
		return fmt.Errorf("a name that nobody has: %v", err)
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	fmt.Println(string(text), who.Username, who.HomeDir, os.Getenv("USER"), nobody.Uid, host, os.Getenv("HOSTNAME"),
		files.Max)
	return nil
}

// The guest has a loopback, users, a name and its caller's limits, unless it has its own.
func TestLikeAHost(t *testing.T) {
	t.Parallel()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	t.Run("by itself", func(t *testing.T) {
		t.Parallel()
		vmmRun(t, "--", program, "-helper=like-a-host").
			want(t, 0, fmt.Sprintln("served root /root root 65534 ktstr ktstr", files.Max))
	})
	t.Run("limits", func(t *testing.T) {
		t.Parallel()
		vmmRun(t, "--", "busybox", "sh", "-c",
			"ulimit -n; ulimit -Hn; busybox cat /proc/self/oom_score_adj /proc/1/oom_score_adj").
			want(t, 0, fmt.Sprintf("%d\n%d\n0\n-1000\n", files.Cur, files.Max))
	})
	t.Run("its own files", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		for name, text := range map[string]string{"hosts": "127.0.0.1 mine\n", "hostname": "mine\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		vmmRun(t, "--include", dir+":/etc", "--env", "USER=me", "--", "busybox", "sh", "-c",
			`busybox cat /etc/hosts; busybox hostname; echo "$HOSTNAME $USER"; busybox grep -c root /etc/passwd`).
			want(t, 0, "127.0.0.1 mine\nmine\nmine me\n1\n")
	})
}
