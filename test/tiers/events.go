package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
)

// events is a stream of test events, of many suites at once.
type events struct {
	mu sync.Mutex
	w  io.Writer
}

// output takes what one test binary prints with -test.v=test2json; test2json makes events of it.
type output struct {
	io.WriteCloser
	cmd  *exec.Cmd
	done chan error
}

// of begins the events of one suite.
func (e *events) of(name string) (*output, error) {
	o := &output{cmd: exec.Command("go", "tool", "test2json", "-t", "-p", name), done: make(chan error, 1)}
	in, err := o.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	o.WriteCloser = in
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := o.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadBytes('\n')
			e.mu.Lock()
			_, failed := e.w.Write(line)
			e.mu.Unlock()
			if err == nil && failed == nil {
				continue
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			_, _ = io.Copy(io.Discard, lines) // so that test2json ends
			o.done <- errors.Join(err, failed)
			return
		}
	}()
	return o, nil
}

// end ends the events of a suite whose binary ended with a code: one that is not 0 fails it, whatever
// its tests said.
func (o *output) end(code int) error {
	var err error
	if code != 0 {
		_, err = fmt.Fprintf(o, "exit status %d\n\x16FAIL\n", code)
	}
	return errors.Join(err, o.Close(), <-o.done, o.cmd.Wait())
}
