package agent

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// program is a process to be. The reaper waits for it as for any other child, so it takes no more
// than a fork and an exec: package os/exec has more to it.
type program struct {
	args []string // of which the first is its path
	env  []string // where a name comes twice, its last value counts
	dir  string
	sys  unix.SysProcAttr

	stdin          *os.File // nil: /dev/null
	stdout, stderr *os.File
}

// start returns the process's ID.
func (p *program) start() (pid int, err error) {
	stdin := p.stdin
	if stdin == nil {
		if stdin, err = os.Open(os.DevNull); err != nil {
			return 0, err
		}
		defer stdin.Close()
	}
	pid, err = syscall.ForkExec(p.args[0], p.args, &syscall.ProcAttr{
		Dir:   p.dir,
		Env:   p.environment(),
		Files: []uintptr{stdin.Fd(), p.stdout.Fd(), p.stderr.Fd()},
		Sys:   &p.sys,
	})
	if err != nil {
		return 0, &fs.PathError{Op: "fork/exec", Path: p.args[0], Err: err}
	}
	return pid, nil
}

func (p *program) environment() (env []string) {
	for _, e := range p.env {
		name, _, _ := strings.Cut(e, "=")
		env = slices.DeleteFunc(env, func(earlier string) bool { return strings.HasPrefix(earlier, name+"=") })
		env = append(env, e)
	}
	return env
}
