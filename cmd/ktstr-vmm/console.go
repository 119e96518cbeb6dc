package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/report"
)

// consoleLimit is how much of a console waits for a slow reader, in bytes. The guest does not wait:
// what is more than that is left out.
const consoleLimit = 4 << 20

// console is where the guest's console goes beside the report.
type console struct {
	sinks      []*consoleSink
	file       *os.File
	fileStream *report.Stream
}

type consoleSink struct {
	*report.Stream
	omitted int
}

// Write takes what there is room for, and never fails: the other sinks shall have it too.
func (s *consoleSink) Write(p []byte) (int, error) {
	if s.Pending()+len(p) > consoleLimit {
		s.omitted += len(p)
		return len(p), nil
	}
	_, _ = s.Stream.Write(p) // its error comes with Close
	return len(p), nil
}

// openConsole opens what the flags ask for.
func (o *options) openConsole(stderr *report.Stream) (*console, error) {
	c := &console{}
	if o.console != "" {
		var err error
		if c.file, err = os.Create(o.console); err != nil {
			return nil, fmt.Errorf("--console %q: %w", o.console, err)
		}
		c.fileStream = report.NewStream(c.file)
		c.sinks = append(c.sinks, &consoleSink{Stream: c.fileStream})
	}
	if o.verbose {
		c.sinks = append(c.sinks, &consoleSink{Stream: stderr})
	}
	return c, nil
}

// writer is where the guest's console is written to; nil where nobody asked for it.
func (c *console) writer() io.Writer {
	if len(c.sinks) == 0 {
		return nil
	}
	var writers []io.Writer
	for _, s := range c.sinks {
		writers = append(writers, s)
	}
	return io.MultiWriter(writers...)
}

func (c *console) close(ctx context.Context) error {
	var errs []error
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
