package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/report"
)

// consolePending is how much of a console waits for a slow reader, in bytes. The guest does not wait:
// what is more than that is left out.
const consolePending = 4 << 20

// console is where the guest's console goes beside the report.
type console struct {
	writers    []io.Writer
	sinks      []*consoleSink
	limited    *limitedConsole
	visible    *report.Visible
	file       *os.File
	fileStream *report.Stream
}

type consoleSink struct {
	*report.Stream
	omitted int
}

// Write takes what there is room for, and never fails: the other sinks shall have it too.
func (s *consoleSink) Write(p []byte) (int, error) {
	if s.Pending()+len(p) > consolePending {
		s.omitted += len(p)
		return len(p), nil
	}
	_, _ = s.Stream.Write(p) // its error comes with Close
	return len(p), nil
}

// openConsole opens what the flags ask for. The console's bytes go to stdout as they are only where that is asked
// for by name: a guest's control characters are for a terminal to act on.
func (o *options) openConsole(stdout, stderr *report.Stream) (*console, error) {
	c := &console{}
	if o.Console != "" {
		raw := stdout
		if o.Console != "-" {
			var err error
			if c.file, err = os.Create(o.Console); err != nil {
				return nil, fmt.Errorf("--console %q: %w", o.Console, err)
			}
			c.fileStream = report.NewStream(c.file)
			raw = c.fileStream
		}
		c.limited = &limitedConsole{w: c.sink(raw), left: uint64(o.ConsoleLimit), limit: o.ConsoleLimit}
		c.writers = append(c.writers, c.limited)
	}
	if o.Verbose {
		c.visible = report.NewVisible(c.sink(stderr))
		c.writers = append(c.writers, c.visible)
	}
	return c, nil
}

func (c *console) sink(w *report.Stream) *consoleSink {
	s := &consoleSink{Stream: w}
	c.sinks = append(c.sinks, s)
	return s
}

// writer is where the guest's console is written to; nil where nobody asked for it.
func (c *console) writer() io.Writer {
	if len(c.writers) == 0 {
		return nil
	}
	return io.MultiWriter(c.writers...)
}

func (c *console) close(ctx context.Context) error {
	var errs []error
	if c.visible != nil {
		_ = c.visible.Flush() // a sink takes all
	}
	if c.limited != nil {
		errs = append(errs, c.limited.err())
	}
	for _, s := range c.sinks {
		errs = append(errs, s.Flush(ctx))
		if s.omitted > 0 {
			errs = append(errs, fmt.Errorf("%d bytes were left out for a slow reader", s.omitted))
		}
	}
	if c.file != nil {
		if err := c.fileStream.Close(ctx); err == nil { // else it is still being written
			errs = append(errs, c.file.Close())
		}
	}
	return errors.Join(errs...)
}

// limitedConsole passes on a console's first bytes, and says where it stopped.
type limitedConsole struct {
	w       io.Writer
	limit   config.Size
	left    uint64 // bytes
	omitted uint64
}

func (l *limitedConsole) Write(p []byte) (int, error) {
	n := min(uint64(len(p)), l.left)
	if n > 0 {
		_, _ = l.w.Write(p[:n]) // a sink takes all
		l.left -= n
	}
	if more := uint64(len(p)) - n; more > 0 {
		if l.omitted == 0 {
			_, _ = fmt.Fprintf(l.w, "\n[ktstr-vmm: --console-limit %v is reached, the rest is left out]\n", &l.limit)
		}
		l.omitted += more
	}
	return len(p), nil
}

// err says how much was left out; nil where nothing was.
func (l *limitedConsole) err() error {
	if l.omitted == 0 {
		return nil
	}
	return fmt.Errorf("--console-limit %v was reached: %d bytes were left out", &l.limit, l.omitted)
}
