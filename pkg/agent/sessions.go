package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/call"
)

// hangUpTerm is how long a session's program has to end after a SIGHUP, and the host to hear of its end: as long as the
// command has after a SIGTERM, for a shell may save its history, and an emulated one is slow.
const hangUpTerm = 2 * time.Second

// sessions are programs that the host has opened beside the command, each on a terminal of its own.
type sessions struct {
	ctx     context.Context
	end     context.CancelFunc // hangs up all of them, and opens no more
	running sync.WaitGroup
}

var errNoShell = errors.New("this guest has no shell: its command's environment has no SHELL that is there, and " +
	"there is no /bin/sh and no busybox; --shell-on-failure brings /bin/sh along, and --include a shell that " +
	"needs no libraries")

// openSessions starts what the host wants to be started, until the sessions' end.
func (a *agent) openSessions() {
	defer a.reportPanic()
	ctx := a.sessions.ctx
	for {
		number, p, err := a.calls.Next(ctx)
		if err != nil {
			a.sayUnlessOver(ctx, err)
			return
		}
		a.sessions.running.Go(func() {
			defer a.reportPanic()
			code := a.runSession(number, p)
			// The sessions' end is no reason not to say so; but the host may be gone.
			ctx, cancel := context.WithTimeout(context.Background(), hangUpTerm)
			defer cancel()
			a.try(a.calls.Closed(ctx, number, code))
		})
	}
}

// endSessions hangs up, and waits until all have ended.
func (a *agent) endSessions() {
	if a.calls == nil {
		return
	}
	a.sessions.end()
	a.sessions.running.Wait()
}

// runSession runs a program on a terminal and returns its exit code, as a shell does.
func (a *agent) runSession(number uint32, want call.Program) (code int) {
	ctx, cancel := context.WithCancel(a.sessions.ctx)
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	s, err := a.startSession(want)
	if err != nil {
		a.sayUnlessOver(ctx, a.calls.Output(ctx, number, fmt.Appendf(nil, "ktstr-vmm: %v\r\n", err)))
		return startCode(err)
	}
	hungUp, flushed := make(chan struct{}), make(chan struct{})
	others.Go(func() {
		defer a.reportPanic()
		a.typeStdin(ctx, number, s.master)
	})
	others.Go(func() {
		defer a.reportPanic()
		if a.followWindow(ctx, number, s.master) {
			close(hungUp)
		}
	})
	others.Go(func() {
		defer a.reportPanic()
		defer close(flushed)
		a.showOutput(ctx, number, s.master)
	})
	select {
	case <-s.process.ended:
		select { // somebody else may have the terminal
		case <-flushed:
		case <-hungUp:
		case <-ctx.Done():
		case <-time.After(lingerIdle):
		}
	case <-hungUp:
	case <-ctx.Done():
	}
	s.master.Close()
	select {
	case <-s.process.ended:
	case <-time.After(hangUpTerm):
		_ = s.process.signalGroup(unix.SIGKILL)
		select {
		case <-s.process.ended:
		case <-time.After(leftoverKill): // it is stuck in the kernel
			return codeSignalled + int(unix.SIGKILL)
		}
	}
	return shellCode(s.process.status)
}

// session is a program on a terminal.
type session struct {
	master  *os.File
	process *process
}

func (a *agent) startSession(want call.Program) (s session, err error) {
	args := want.Args
	if len(args) == 0 {
		if args = a.shell(); args == nil {
			return s, errNoShell
		}
	}
	dir := want.Dir
	if dir == "" {
		dir = a.job.Dir
	}
	p := program{
		args: args, env: a.environment(), dir: a.path(dir),
		sys: unix.SysProcAttr{Setsid: true, Setctty: true}, // fd 0
	}
	if want.Term != "" {
		p.env = append(p.env, "TERM="+want.Term)
	}
	if p.args, err = a.found(args, p.environment()); err != nil {
		return s, err
	}
	master, terminal, err := openTerminal(call.WindowSize{Rows: want.Rows, Cols: want.Cols})
	if err != nil {
		return s, err
	}
	defer terminal.Close()
	p.stdin, p.stdout, p.stderr = terminal, terminal, terminal
	process, err := a.reaper.start(&p)
	if err != nil {
		master.Close()
		return s, err
	}
	// It has the agent's mark for the OOM killer.
	a.try(os.WriteFile(a.path(procDir, fmt.Sprint(process.pid), "oom_score_adj"), []byte("0\n"), 0))
	return session{master, process}, nil
}

// showOutput shows the host what comes out of a session's terminal.
func (a *agent) showOutput(ctx context.Context, number uint32, master *os.File) {
	buf := make([]byte, call.FewBytes)
	for out := (terminalOutput{master}); ; {
		n, err := out.Read(buf)
		if n > 0 {
			if err := a.calls.Output(ctx, number, buf[:n]); err != nil {
				a.sayUnlessOver(ctx, err)
				_, _ = io.Copy(io.Discard, out) // its program is not to wait for us
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// shell is the guest's: the one that the command's environment names, or the usual one; nil where there is none.
func (a *agent) shell() []string {
	for _, e := range a.job.Env {
		if path, ok := strings.CutPrefix(e, "SHELL="); ok && a.isProgram(path) {
			return []string{path}
		}
	}
	if a.isProgram("/bin/sh") {
		return []string{"/bin/sh"}
	}
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox", a.job.Args[0]} {
		if filepath.Base(path) == "busybox" && a.isProgram(path) {
			return []string{path, "sh"}
		}
	}
	return nil
}

// found returns a command with its program's path: a name without a slash is looked up in PATH, and beside the run's
// own command, which need not be there.
func (a *agent) found(args, env []string) ([]string, error) {
	if strings.Contains(args[0], "/") {
		return args, nil
	}
	for _, e := range append(env, "PATH="+filepath.Dir(a.job.Args[0])) {
		list, isPath := strings.CutPrefix(e, "PATH=")
		for dir := range strings.SplitSeq(list, ":") {
			if path := filepath.Join(dir, args[0]); isPath && filepath.IsAbs(dir) && a.isProgram(path) {
				return append([]string{path}, args[1:]...), nil
			}
		}
	}
	return nil, fmt.Errorf("%s is not in the guest's PATH; --include brings a program along: %w", args[0], fs.ErrNotExist)
}

func (a *agent) isProgram(path string) bool {
	info, err := os.Stat(a.path(path))
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// prompt tells the host that the command has failed, if that wants to know, and waits until the guest may end, or is
// asked to.
func (a *agent) prompt(ctx context.Context, code int, outputs *sync.WaitGroup) {
	if !a.job.Prompt || a.calls == nil || code == 0 {
		return
	}
	select {
	case <-a.stopping:
		return
	default:
	}
	flushed := make(chan struct{})
	go func() {
		outputs.Wait()
		close(flushed)
	}()
	a.flush(ctx, flushed, lingerLimit)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-a.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	if ctx.Err() == nil {
		a.sayUnlessOver(ctx, a.calls.Closed(ctx, call.CommandSession, code))
	}
}
