package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// required is how many of the mounts below must be there.
const required = 3

// mountAll makes what programs expect of a Linux system. What a kernel was built without is left
// out. The root is in memory and can be written to as it is, and what was put below /tmp must not
// be covered, so no file system is mounted there.
func mountAll() error {
	for _, dir := range []string{"/tmp", "/run", "/root"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod("/tmp", 0o777|os.ModeSticky); err != nil {
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
		err := os.MkdirAll(m.target, 0o755)
		if err == nil || errors.Is(err, os.ErrExist) {
			err = unix.Mount(m.source, m.target, m.fstype, unix.MS_NOSUID, m.data)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) && i < required {
			return fmt.Errorf("mounting %s on %s: %w", m.fstype, m.target, err)
		}
	}
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}
