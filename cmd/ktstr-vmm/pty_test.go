package main

import (
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/ptytest"
)

// pty is a terminal, and what was written to it.
type pty struct {
	t       *testing.T
	master  *os.File
	slave   *os.File // what programs have as theirs
	reading sync.WaitGroup

	mu    sync.Mutex
	got   []byte
	onGot func(p []byte) // called with what was written, in order
}

// newPTY makes a terminal that does with output what a terminal does: "\n" becomes "\r\n".
func newPTY(t *testing.T, rows, columns int, onGot func([]byte)) *pty {
	t.Helper()
	master, slave := ptytest.Open(t)
	p := &pty{t: t, master: master, slave: slave, onGot: onGot}
	p.resize(rows, columns)
	p.reading.Go(p.read)
	t.Cleanup(func() {
		p.slave.Close()
		p.reading.Wait()
		p.master.Close()
	})
	return p
}

func (p *pty) resize(rows, columns int) {
	p.t.Helper()
	ptytest.Resize(p.t, p.master, uint16(rows), uint16(columns))
}

// read reads until no program has the terminal any more.
func (p *pty) read() {
	buf := make([]byte, 4096)
	for {
		n, err := p.master.Read(buf)
		p.mu.Lock()
		p.got = append(p.got, buf[:n]...)
		if p.onGot != nil {
			p.onGot(buf[:n])
		}
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// text is what was written so far.
func (p *pty) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.got)
}

// until waits for what was written to be as wanted.
func (p *pty) until(what string, wanted func(text string) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(hangLimit); !wanted(p.text()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("not %s: %q", what, p.text())
		}
	}
}

// start starts a program in a session of its own, with the terminal as what it is given no other file for.
func (p *pty) start(cmd *exec.Cmd) {
	p.t.Helper()
	if cmd.Stdin == nil {
		cmd.Stdin = p.slave
	}
	if cmd.Stdout == nil {
		cmd.Stdout = p.slave
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.slave
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { cmd.Process.Kill() })
}
