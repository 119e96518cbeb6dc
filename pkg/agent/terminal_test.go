package agent

import (
	"io"
	"os"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// What Linux has behind the first EIO of a terminal is read, too.
func TestTerminalOutput(t *testing.T) {
	closed := &os.PathError{Op: "read", Path: "/dev/ptmx", Err: unix.EIO}
	output := &fakeTerminal{reads: []any{"all but ", closed, "its end", closed, "\r\n", closed, closed}}
	got, err := io.ReadAll(terminalOutput{output})
	if want := "all but its end\r\n"; string(got) != want || err != closed {
		t.Errorf("%q, %v; want %q, %v", got, err, want, closed)
	}
	if len(output.reads) > 0 {
		t.Errorf("not read: %v", output.reads)
	}
	broken := terminalOutput{io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))}
	if n, err := broken.Read(make([]byte, 1)); n != 0 || err != io.ErrUnexpectedEOF {
		t.Errorf("%d, %v; want any other error as it is", n, err)
	}
}

// fakeTerminal is a terminal whose reads give these texts and errors.
type fakeTerminal struct{ reads []any }

func (f *fakeTerminal) Read(buf []byte) (int, error) {
	next := f.reads[0]
	f.reads = f.reads[1:]
	if err, ok := next.(error); ok {
		return 0, err
	}
	return copy(buf, next.(string)), nil
}

func (f *fakeTerminal) Close() error { return nil }
