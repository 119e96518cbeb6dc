package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// kernel is what the agent asks of a guest's kernel that would change a test's host.
type kernel struct {
	mount       func(source, target, fstype string, flags uintptr, data string) error
	setHostname func([]byte) error
	setLimit    func(resource int, limit *unix.Rlimit) error
	setRealTime func(tid int, resets bool) error
	loadModule  func(fd int, params string, flags int) error
	ringBell    func()
}

var theKernel = kernel{unix.Mount, unix.Sethostname, unix.Setrlimit, setRealTime, unix.FinitModule, ringBell}

// required is how many of the mounts below must be there.
const required = 3

// mountAll makes what programs expect of a Linux system. What a kernel was built without is left
// out. The root is in memory and can be written to as it is, and what was put below /tmp must not
// be covered, so no file system is mounted there.
func (a *agent) mountAll() error {
	for _, dir := range []string{"/tmp", "/run", "/root", "/etc"} {
		if err := os.MkdirAll(a.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(a.path("/tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for i, m := range []struct{ source, target, fstype, data string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", ""},
		{"bpf", "/sys/fs/bpf", "bpf", ""},
	} {
		err := os.MkdirAll(a.path(m.target), 0o755)
		if err == nil || errors.Is(err, os.ErrExist) {
			err = a.kernel.mount(m.source, a.path(m.target), m.fstype, unix.MS_NOSUID, m.data)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) && i < required {
			return fmt.Errorf("mounting %s on %s: %w", m.fstype, m.target, err)
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, a.path(link)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// defaultHostname is a guest's name where it has no /etc/hostname.
const defaultHostname = "ktstr"

// setUp makes a guest more like a host: a name, a loopback, the files by which programs find users
// and names, and limits. A guest runs without any of it, so what fails is said on the console alone.
func (a *agent) setUp() {
	a.hostname = defaultHostname
	if name := a.kernelSays("/etc/hostname"); name != "" {
		a.hostname = name
	}
	a.try(a.kernel.setHostname([]byte(a.hostname)))
	a.try(loopbackUp())
	for _, f := range []struct{ path, text string }{
		{"/etc/hostname", a.hostname + "\n"},
		{"/etc/hosts", "127.0.0.1\tlocalhost " + a.hostname + "\n::1\tlocalhost\n"},
		{"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{"/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"},
		{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"},
		{"/etc/resolv.conf", "# A guest has no network but its loopback, and no name server.\n"},
	} {
		a.try(writeIfAbsent(a.path(f.path), f.text))
	}
	if l := a.job.OpenFiles; l.Hard > 0 {
		a.try(a.limitOpenFiles(l.Soft, l.Hard))
	}
}

// writeIfAbsent writes a file where there is none, not even a link that leads nowhere.
func writeIfAbsent(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// limitOpenFiles sets how many files a process may have open, for the agent and what it starts. The
// kernel has a bound of its own, which is raised first.
func (a *agent) limitOpenFiles(soft, hard uint64) error {
	const bound = "/proc/sys/fs/nr_open"
	if most, err := strconv.ParseUint(a.kernelSays(bound), 10, 64); err == nil && most < hard {
		if err := os.WriteFile(a.path(bound), fmt.Appendf(nil, "%d\n", hard), 0); err != nil {
			hard = most
		}
	}
	if err := a.kernel.setLimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: min(soft, hard), Max: hard}); err != nil {
		return fmt.Errorf("limiting open files to %d, at most %d: %w", soft, hard, err)
	}
	return nil
}

// environment is the command's and the scheduler's: what the host says, what the guest knows, and where both can put
// messages.
func (a *agent) environment() []string {
	return slices.Concat([]string{"USER=root", "HOSTNAME=" + a.hostname}, a.job.Env, a.doors.env())
}

// loopbackUp brings lo up; the kernel gives it 127.0.0.1 and ::1 then. netdevice(7).
func loopbackUp() error {
	failed := func(err error) error { return fmt.Errorf("bringing up the loopback lo: %w", err) }
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return failed(err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return failed(err)
	}
	if lo.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return failed(err)
	}
	return nil
}
