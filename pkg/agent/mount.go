package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountAll makes what programs expect of a Linux system. What a kernel was built without is left
// out; only the first four must be there.
func mountAll() error {
	for i, m := range []struct{ source, target, fstype, data string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"},
		{"tmpfs", "/run", "tmpfs", "mode=755"},
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
		if err != nil && !errors.Is(err, unix.EBUSY) && i < 4 {
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
