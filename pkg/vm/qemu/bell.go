package qemu

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// How often the doorbell's pipe is read: so many times at once, and then no more than once in so long, so that a
// guest which rings without end costs its host no more than the poll of its ring does. The pipe has room for what
// it rings meanwhile, for each ring is a system call of QEMU's; so it holds up neither.
const (
	bellBurst = 16
	bellEvery = 50 * time.Millisecond
	bellBytes = 256 << 10 // what the pipe holds: ten times what was rung here in that time
)

// bellPipe is what QEMU writes a byte to for each ring. It is read by a thread that blocks, for Go's own poller
// hears of every write to a pipe that it knows, also while nobody reads (epoll(7), EPOLLET).
type bellPipe struct {
	fd   int
	ring func(rings int)
}

// newBellPipe returns the pipe and the end of it that is QEMU's.
func newBellPipe(ring func(rings int)) (*bellPipe, *os.File, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	// Where this user has many large pipes, it stays a small one.
	_, _ = unix.FcntlInt(uintptr(ends[0]), unix.F_SETPIPE_SZ, bellBytes)
	return &bellPipe{ends[0], ring}, os.NewFile(uintptr(ends[1]), "doorbell"), nil
}

// listen passes on the rings until QEMU has closed the pipe, or is gone though somebody else has it open.
func (p *bellPipe) listen(gone <-chan struct{}) {
	defer p.close()
	buf := make([]byte, bellBytes)
	var paid time.Time // when all reads so far are paid for, at one in bellEvery
	for last := false; p.await(gone); {
		n, err := unix.Read(p.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 {
			return
		}
		if p.ring(n); last {
			return
		}
		now := time.Now()
		if paid.Before(now) {
			paid = now
		}
		paid = paid.Add(bellEvery)
		select {
		case <-gone:
			last = true
		case <-time.After(paid.Sub(now) - bellBurst*bellEvery):
		}
	}
}

// await waits until there is something to read and reports whether that is so.
func (p *bellPipe) await(gone <-chan struct{}) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(drainLimit.Milliseconds()))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return false
		case n > 0:
			return true
		}
		select {
		case <-gone:
			return false
		default:
		}
	}
}

func (p *bellPipe) close() { _ = unix.Close(p.fd) }
