package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

const (
	// outputChunk is the largest piece of output that one message carries.
	outputChunk = 64 << 10
	// lingerLimit is how long more output may fail to come when the command has ended: a child
	// that it left behind may hold its pipes open for ever. What has come is sent, however long
	// the host takes to make room for it.
	lingerLimit = 500 * time.Millisecond
	lingerPoll  = 50 * time.Millisecond
	// controlPoll is how often the control bytes are looked at.
	controlPoll = 10 * time.Millisecond
	// termLimit is how long a command that was asked to end may take to.
	termLimit = 2 * time.Second
)

// runCommand runs the command to its end and returns its exit code, as a shell does.
func (a *agent) runCommand(ctx context.Context) int {
	if err := os.MkdirAll(a.job.Dir, 0o755); err != nil {
		a.complain(err)
	}
	p := program{
		args: a.job.Args,
		env:  slices.Concat(a.job.Env, a.doors.env()),
		dir:  a.job.Dir,
		sys:  unix.SysProcAttr{Setsid: true},
	}
	ends, outputs, err := a.connect(ctx, &p)
	pid := 0
	if err == nil {
		pid, err = p.start()
	}
	for _, f := range ends {
		f.Close()
	}
	if err != nil {
		outputs.Wait()
		a.warn(err)
		return startCode(err)
	}
	done, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		defer a.reportPanic()
		a.answerControl(done, pid)
	})
	code := a.wait(ctx, pid)
	cancel()
	watcher.Wait()

	a.flush(outputs)
	return code
}

// connect gives the command its outputs: two pipes, or one, or a terminal where one is asked for. It
// returns the command's ends of them, and a group of goroutines that send what comes out of the
// others.
func (a *agent) connect(ctx context.Context, p *program) (ends []*os.File, outputs *sync.WaitGroup, err error) {
	outputs = &sync.WaitGroup{}
	output := func(open func() (r, w *os.File, err error), typ shm.Type) (*os.File, error) {
		r, w, err := open()
		if err != nil {
			return nil, err
		}
		ends = append(ends, w)
		outputs.Go(func() {
			defer a.reportPanic()
			a.forward(ctx, r, typ)
		})
		return w, nil
	}
	open := os.Pipe
	if a.job.TTY {
		open = openTerminal
	}
	w, err := output(open, shm.Stdout)
	if err != nil {
		return ends, outputs, err
	}
	p.stdout, p.stderr = w, w
	switch {
	case a.job.TTY:
		p.stdin = w
		p.sys.Setctty = true // fd 0
	case !a.job.OneOutput:
		if w, err = output(open, shm.Stderr); err != nil {
			return ends, outputs, err
		}
		p.stderr = w
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

// flush waits until all output was sent: until the pipes are closed, or empty for long enough.
func (a *agent) flush(outputs *sync.WaitGroup) {
	flushed := make(chan struct{})
	go func() {
		outputs.Wait()
		close(flushed)
	}()
	for idle := time.Duration(0); idle < lingerLimit; idle += lingerPoll {
		before := a.sent.Load()
		select {
		case <-flushed:
			return
		case <-time.After(lingerPoll):
		}
		if a.sending.Load() > 0 || a.sent.Load() != before {
			idle = 0
		}
	}
}

// wait reaps children until pid has ended. That the scheduler ends meanwhile is reported at once.
func (a *agent) wait(ctx context.Context, pid int) int {
	for {
		e, ok := a.reaper.next(ctx)
		if !ok {
			return codeNotExecutable
		}
		switch e.pid {
		case pid:
			return shellCode(e.status)
		case a.scheduler:
			a.try(a.schedulerGone(ctx, shellCode(e.status)))
		}
	}
}

// shellCode is how a shell names the end of a process.
func shellCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return codeSignalled + int(s.Signal())
	}
	return s.ExitStatus()
}

// forward sends what the command writes, in order and all of it.
func (a *agent) forward(ctx context.Context, r *os.File, typ shm.Type) {
	defer r.Close()
	buf := make([]byte, outputChunk)
	for {
		n, err := r.Read(buf)
		a.sending.Add(1)
		for part := buf[:n]; len(part) > 0; {
			m := min(len(part), a.chunk())
			if err := a.writer.WriteWait(ctx, typ, part[:m]); err != nil {
				a.complain(err)
				return
			}
			part = part[m:]
		}
		a.sent.Add(1)
		a.sending.Add(-1)
		if err != nil {
			return
		}
	}
}

// chunk is how much output one message carries: a quarter of the ring at most, so that the host
// reads one while the guest writes the next.
func (a *agent) chunk() int { return int(min(outputChunk, a.writer.Capacity()/4)) }

// answerControl does what the host asks for by the control bytes, until ctx ends.
func (a *agent) answerControl(ctx context.Context, pid int) {
	tick := time.NewTicker(controlPoll)
	defer tick.Stop()
	asked := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if a.control.TakeDump() {
			a.try(os.WriteFile("/proc/sysrq-trigger", []byte("D"), 0))
		}
		if a.control.TakeStall() {
			a.try(os.WriteFile(filepath.Join("/tmp", "ktstr_stall"), nil, 0o644))
		}
		if v, err := a.control.Read(shm.SlotHost); err == nil && v == shm.SignalShutdown && !asked {
			asked = true
			_ = unix.Kill(-pid, unix.SIGTERM) // its session's group
			time.AfterFunc(termLimit, func() { _ = unix.Kill(-pid, unix.SIGKILL) })
		}
	}
}

func (a *agent) try(err error) {
	if err != nil {
		a.complain(err)
	}
}
