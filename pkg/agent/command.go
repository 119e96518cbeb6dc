package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// outputChunk is the largest piece of output that one message carries.
const outputChunk = 64 << 10

// limits are how long things may take.
type limits struct {
	// term is how long a command that was asked to end may take to.
	term time.Duration
	// schedulerUp is how long the scheduler may take to be in charge.
	schedulerUp time.Duration
	// schedulerSettles is how long it has to live where the kernel has no word for it, and how long
	// its end may take to be seen at the run's end.
	schedulerSettles time.Duration
	// schedulerTerm is how long it may take to go at the run's end.
	schedulerTerm time.Duration
	// crash is how long the host may take to make room for what ended the agent.
	crash time.Duration
}

var defaultLimits = limits{
	term:             2 * time.Second,
	schedulerUp:      10 * time.Second,
	schedulerSettles: 100 * time.Millisecond,
	schedulerTerm:    2 * time.Second,
	crash:            10 * time.Second,
}

// runCommand runs the command to its end and returns its exit code, as a shell does.
func (a *agent) runCommand(ctx context.Context) int {
	if err := os.MkdirAll(a.path(a.job.Dir), 0o755); err != nil {
		a.complain(err)
	}
	p := program{
		args: a.job.Args,
		env:  a.environment(),
		dir:  a.path(a.job.Dir),
		sys:  unix.SysProcAttr{Setsid: true},
	}
	ends, outputs, err := a.connect(ctx, &p)
	var command *process
	if err == nil {
		// The agent's children have its mark for the OOM killer.
		a.try(a.spare(false))
		command, err = a.reaper.start(&p)
		a.try(a.spare(true))
	}
	for _, f := range ends {
		f.Close()
	}
	if err != nil {
		outputs.Wait()
		a.warn(err)
		a.prompt(ctx, startCode(err), outputs)
		a.endSessions()
		return startCode(err)
	}
	a.wait(ctx, command)
	code := codeNotExecutable
	select {
	case <-command.ended:
		code = shellCode(command.status)
	default: // ctx has ended
	}
	a.prompt(ctx, code, outputs)
	a.endSessions()
	a.linger(ctx, outputs)
	return code
}

// spare says whether the agent, and what it starts from now on, is spared by the OOM killer:
// proc_pid_oom_score_adj(5).
func (a *agent) spare(spared bool) error {
	text := "0"
	if spared {
		text = "-1000"
	}
	return os.WriteFile(a.path("/proc/self/oom_score_adj"), []byte(text+"\n"), 0)
}

// connect gives the command its outputs: two pipes, or one, or a terminal where one is asked for; and
// its stdin, if the host has one for it. It returns the command's ends of them, and a group of
// goroutines that send what comes out of the others.
func (a *agent) connect(ctx context.Context, p *program) (ends []*os.File, outputs *sync.WaitGroup, err error) {
	outputs = &sync.WaitGroup{}
	output := func(r io.ReadCloser, w *os.File, typ shm.Type) {
		ends = append(ends, w)
		outputs.Go(func() {
			defer a.reportPanic()
			a.forward(ctx, r, typ)
		})
	}
	if a.job.TTY {
		master, terminal, err := openTerminal(call.WindowSize(a.job.Window))
		if err != nil {
			return ends, outputs, err
		}
		output(terminalOutput{master}, terminal, shm.Stdout)
		p.stdin, p.stdout, p.stderr = terminal, terminal, terminal
		p.sys.Setctty = true // fd 0
		if a.job.Stdin && a.calls != nil {
			a.background(func() { a.typeStdin(ctx, call.CommandSession, master) })
			a.background(func() { a.followWindow(ctx, call.CommandSession, master) })
		}
		return ends, outputs, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return ends, outputs, err
	}
	output(r, w, shm.Stdout)
	p.stdout, p.stderr = w, w
	if !a.job.OneOutput {
		if r, w, err = os.Pipe(); err != nil {
			return ends, outputs, err
		}
		output(r, w, shm.Stderr)
		p.stderr = w
	}
	if a.job.Stdin && a.calls != nil {
		if r, w, err = os.Pipe(); err != nil {
			return ends, outputs, err
		}
		ends = append(ends, r)
		p.stdin = r
		a.background(func() { a.feedStdin(ctx, w) })
	}
	return ends, outputs, nil
}

// startCode is how a shell names what kept a program from starting.
func startCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return codeNotFound
	}
	return codeNotExecutable
}

// wait returns when the command has ended. Where the run is to end before, the command is asked to,
// and ended if it does not.
func (a *agent) wait(ctx context.Context, command *process) {
	select {
	case <-ctx.Done():
		return
	case <-command.ended:
		return
	case <-a.stopping:
	}
	_ = command.signalGroup(unix.SIGTERM)
	if a.calls != nil {
		a.sessions.end() // beside the command's end, for there is little time
	}
	select {
	case <-ctx.Done():
		return
	case <-command.ended:
		return
	case <-time.After(a.limits.term):
	}
	_ = command.signalGroup(unix.SIGKILL)
	select {
	case <-ctx.Done():
	case <-command.ended:
	}
}

// forward sends what the command writes, in order and all of it.
func (a *agent) forward(ctx context.Context, r io.ReadCloser, typ shm.Type) {
	defer r.Close()
	buf := make([]byte, outputChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := a.sendOutput(ctx, typ, buf[:n]); err != nil {
				a.complain(err)
				return
			}
		}
		if err != nil {
			if err != io.EOF && !errors.Is(err, unix.EIO) { // a pipe's end, and a terminal's
				a.complain(err)
			}
			return
		}
	}
}

func (a *agent) sendOutput(ctx context.Context, typ shm.Type, output []byte) error {
	a.sending.Add(1)
	defer a.sending.Add(-1)
	for part := range slices.Chunk(output, a.chunk()) {
		if err := a.writer.WriteWait(ctx, typ, part); err != nil {
			return err
		}
	}
	a.sent.Add(1)
	return nil
}

// chunk is how much output one message carries: a quarter of the ring at most, so that the host
// reads one while the guest writes the next.
func (a *agent) chunk() int { return int(min(outputChunk, a.writer.Capacity()/4)) }
