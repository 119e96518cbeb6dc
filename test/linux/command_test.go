//go:build linuxbed

package linux

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		args   []string
		code   int
		stderr string
	}{
		"success":        {[]string{"busybox", "true"}, 0, ""},
		"failure":        {[]string{"busybox", "sh", "-c", "exit 3"}, 3, ""},
		"not executable": {[]string{kernel}, 126, "ktstr-vmm: fork/exec " + kernel + ": permission denied\n"},
		"not found": {[]string{"/no/such/program"}, 127,
			"ktstr-vmm: fork/exec /no/such/program: no such file or directory\n"},
		"killed": {[]string{"busybox", "sh", "-c", "kill -TERM $$"}, 143, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := vmmRun(t, append([]string{"--"}, tc.args...)...)
			e.want(t, tc.code, "")
			if string(e.stderr) != tc.stderr {
				t.Errorf("stderr %q, want %q", e.stderr, tc.stderr)
			}
		})
	}
}

// On the largest ring; the smallest one is TestSlowReader's.
func TestOutputIsExact(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--shm-size", "1G", "--memory", "1536M", "--", program, "-helper=bulk")
	if e.code != 0 || sha256.Sum256(e.stdout) != sha256.Sum256(bytesOf(1)) ||
		sha256.Sum256(e.stderr) != sha256.Sum256(bytesOf(2)) {
		t.Errorf("exit code %d, %d bytes of stdout, %d of stderr; want %d each, and the same", e.code,
			len(e.stdout), len(e.stderr), bulk)
	}
}

// sleeper is a reader that takes its time before it takes anything.
type sleeper struct {
	bytes.Buffer
	slept bool
}

func (s *sleeper) Write(p []byte) (int, error) {
	if !s.slept {
		time.Sleep(3 * time.Second)
		s.slept = true
	}
	return s.Buffer.Write(p)
}

// A slow reader of our output slows the command down; what the command had written when it ended
// still comes, all of it.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	size := bulk
	if testing.Short() {
		size /= 8 // a ring of 8 KiB is full often enough
	}
	cmd := exec.Command(vmm, runArgs("--shm-size", "8K", "--", program, "-helper=bulk", fmt.Sprint("-written=", size))...)
	var stdout, stderr sleeper
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || sha256.Sum256(stdout.Bytes()) != sha256.Sum256(bytesOf(1)[:size]) ||
		sha256.Sum256(stderr.Bytes()) != sha256.Sum256(bytesOf(2)[:size]) {
		t.Errorf("%v, %d bytes of stdout, %d of stderr; want %d each, and the same", err, stdout.Len(), stderr.Len(), size)
	}
}

func TestDynamicallyLinkedCommand(t *testing.T) {
	t.Parallel()
	vmmRun(t, "--env", "GREETING=hello world", "--", "/usr/bin/env", "-u", "TERM").want(t, 0,
		"USER=root\nHOSTNAME=ktstr\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\n"+
			"GREETING=hello world\nKTSTR_SOCKET=/run/ktstr/socket\nKTSTR_MESSAGES=/run/ktstr/messages\n")
}

// A script, with a folder and a dynamically linked program that are included.
func TestScriptAndIncludedTree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for path, mode := range map[string]os.FileMode{"tree/a/file": 0o640, "tree/b": 0o755} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content of "+filepath.Base(path)+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a/file", filepath.Join(dir, "tree", "link")); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script,
		[]byte("#!"+busybox(t)+" sh\nbusybox cat /data/link\nbusybox stat -c '%a %F' /data/a/file /data/b /data/link\n"+
			"echo \"$1\"\nenvironment | busybox grep HOME\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	vmmRun(t, "--include", filepath.Join(dir, "tree")+":/data",
		"--include", filepath.Join(sysroot, "/usr/bin/env")+":/bin/environment", "--", script, "an argument").want(t, 0,
		"content of file\n640 regular file\n755 regular file\n777 symbolic link\nan argument\nHOME=/root\n")
}

// What programs expect of a Linux system is there and can be written to.
func TestGuestEnvironment(t *testing.T) {
	t.Parallel()
	vmmRun(t, "--", "busybox", "sh", "-ec", `
		for d in /tmp /run /dev/shm; do echo x > $d/file; done
		test -c /dev/null; test -e /proc/self/status; test -d /sys/kernel; test -e /sys/fs/cgroup/cgroup.controllers
		test -d /sys/kernel/tracing/events; busybox grep -q ' /sys/fs/bpf bpf ' /proc/mounts
		echo x | busybox cat /dev/stdin > /dev/null
		test "$(busybox id -u)" = 0; echo fine`).want(t, 0, "fine\n")
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{
		"--tty=false": "no terminal\n",
		"--tty":       "/dev/pts/0\r\n24 80\r\nthe controlling one\r\n",
	} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			vmmRun(t, flag, "--", "busybox", "sh", "-c", `
				test -t 1 || { echo no terminal; exit; }
				busybox tty; busybox stty size; echo the controlling one > /dev/tty`).want(t, 0, want)
		})
	}
}

// A Go test binary has its testdata in its folder.
func TestTestdata(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "testdata", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "testdata", "sub", "file"), []byte("golden"), 0o644); err != nil {
		t.Fatal(err)
	}
	e := vmmRunIn(t, dir, "--", program, "-test.run=TestReadsTestdata", "-test.v")
	if e.code != 0 || !strings.Contains(string(e.stdout), "--- PASS: TestReadsTestdata") {
		t.Errorf("exit code %d, %s%s", e.code, e.stdout, e.stderr)
	}
}

// TestReadsTestdata is for TestTestdata's guest; elsewhere there is no such file.
func TestReadsTestdata(t *testing.T) {
	if os.Getenv("KTSTR_SOCKET") == "" {
		return
	}
	if text, err := os.ReadFile("testdata/sub/file"); err != nil || string(text) != "golden" {
		t.Errorf("%q, %v", text, err)
	}
}

// changing is what differs between two runs of the same tests: times, addresses, goroutines.
var changing = regexp.MustCompile(`\d+\.\d+s|0x[0-9a-f]+|goroutine \d+|pc=\S+`)

// The exec flag changes where tests run, and nothing of what go test makes of them.
func TestGoTestExec(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("KTSTR_TEST_GO")
	goroot := filepath.Join(dir, "root")
	goTest := func(goarch string, flags ...string) (string, int) {
		cmd := exec.Command(filepath.Join(goroot, "bin", "go"),
			append(append([]string{"test", "-trimpath", "-vet=off", "-count=1"}, flags...), "./...")...)
		cmd.Dir = filepath.Join(dir, "module")
		cmd.Env = append(os.Environ(), "GOROOT="+goroot, "GOCACHE="+filepath.Join(dir, "cache"), "GOTOOLCHAIN=local",
			"GOFLAGS=-mod=mod", "CGO_ENABLED=0", "GOTELEMETRY=off",
			"GOARCH="+goarch)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return changing.ReplaceAllString(string(out), "…"), cmd.ProcessState.ExitCode()
	}
	want, wantCode := goTest(runtime.GOARCH)
	got, code := goTest(cmp.Or(map[string]string{"x86_64": "amd64"}[arch], arch), "-exec",
		vmm+" "+strings.Join(runArgs("--"), " "))
	if got != want || code != wantCode || code != 1 {
		t.Errorf("exit code %d, without -exec %d\n%s\nwithout -exec:\n%s", code, wantCode, got, want)
	}
}
