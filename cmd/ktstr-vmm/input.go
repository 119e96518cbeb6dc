package main

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/config"
)

// input is what this process's stdin is for a guest's command.
type input struct {
	pipe     *pollReader // what is read as it is; nil: it is not
	terminal *os.File    // stdin, if it is a terminal; else nil
	keys     bool        // the terminal's keys are the command's, one by one
}

// openInput decides what of stdin the command gets: all of it, if it is no terminal; a terminal only if that is asked
// for.
func openInput(stdin io.Reader, s *config.Settings) (in input, err error) {
	file, ok := stdin.(*os.File)
	if !ok || isNull(file) {
		return in, nil
	}
	if isTerminal(file) || isAnyTerminal(file) {
		in.terminal = file
		if !s.Interactive {
			return in, nil
		}
		if s.TTY {
			in.keys = true
			return in, nil
		}
	}
	in.pipe, err = newPollReader(file)
	return in, err
}

// given reports whether the command has a stdin.
func (in *input) given() bool { return in.pipe != nil || in.keys }

// readsTerminal reports whether that is a terminal, by lines or by keys.
func (in *input) readsTerminal() bool { return in.terminal != nil && in.given() }

func (in *input) close() {
	if in.pipe != nil {
		in.pipe.Close()
	}
}

// isNull reports whether a file is /dev/null, or closed.
func isNull(f *os.File) bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return true
	}
	const nullMajor, nullMinor = 1, 3 // Linux, Documentation/admin-guide/devices.txt
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && unix.Major(st.Rdev) == nullMajor && unix.Minor(st.Rdev) == nullMinor
}

// isAnyTerminal reports whether a file is a terminal, even one that acts on no control sequences.
func isAnyTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// pollReader reads a file that may block for ever, such as a terminal or a pipe, until it is closed.
type pollReader struct {
	file *os.File // which has the fd
	fd   int
	quit [2]int // a pipe, whose other end is closed to end a Read
	once sync.Once
}

func newPollReader(file *os.File) (*pollReader, error) {
	r := &pollReader{file: file, fd: int(file.Fd())}
	if err := unix.Pipe2(r.quit[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	return r, nil
}

// Read waits until there is something to read, or Close was called: then it returns os.ErrClosed.
func (r *pollReader) Read(p []byte) (int, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}, {Fd: int32(r.quit[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return 0, os.NewSyscallError("poll", err)
		}
		if fds[1].Revents != 0 {
			return 0, os.ErrClosed
		}
		switch n, err := unix.Read(r.fd, p); {
		// Who shares the file may have made it nonblocking, and have read what there was.
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Close ends a Read that waits, and all that come. The file stays open. (The end that is read goes with the process: a
// Read may be about to wait for it.)
func (r *pollReader) Close() { r.once.Do(func() { _ = unix.Close(r.quit[1]) }) }

// maxKeys is how much of what is typed waits for the guest, in bytes: as much as a paste may have. A terminal does the
// same with what is more: it is lost, and the bell rings.
const maxKeys = 64 << 10

// keys are what was typed and the guest has yet to take.
type keys struct {
	mu      sync.Mutex
	changed *sync.Cond
	typed   []byte
	closed  bool
}

func newKeys() *keys {
	k := &keys{}
	k.changed = sync.NewCond(&k.mu)
	return k
}

// put adds what was typed, and reports whether there was room for it.
func (k *keys) put(p []byte) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.typed)+len(p) > maxKeys {
		return false
	}
	k.typed = append(k.typed, p...)
	k.changed.Broadcast()
	return true
}

// Read waits for keys. After close it returns io.EOF.
func (k *keys) Read(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.typed) == 0 && !k.closed {
		k.changed.Wait()
	}
	if len(k.typed) == 0 {
		return 0, io.EOF
	}
	n := copy(p, k.typed)
	k.typed = k.typed[:copy(k.typed, k.typed[n:])]
	return n, nil
}

func (k *keys) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.changed.Broadcast()
}
