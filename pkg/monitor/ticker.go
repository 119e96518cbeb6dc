package monitor

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ticker wakes the loop periodically. It is a timerfd and not a time.Ticker because of what a
// hundred wake-ups a second cost: a Go timer wakes the runtime's own watcher beside the goroutine,
// and a read by an ordinary system call does too (timerfd_create(2)).
type ticker struct {
	file   *os.File
	conn   syscall.RawConn
	read   func(fd uintptr) bool // made once, so that waiting allocates nothing
	count  [8]byte               // what the read fills: expirations since the last one
	period time.Duration
	due    time.Time // when the last expiration that was waited for was due
}

func newTicker(period time.Duration) (*ticker, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timer for the monitor: %w", err)
	}
	t := &ticker{file: os.NewFile(uintptr(fd), "timerfd")}
	if t.conn, err = t.file.SyscallConn(); err == nil {
		err = t.arm(period)
	}
	if err != nil {
		t.file.Close()
		return nil, fmt.Errorf("timer for the monitor: %w", err)
	}
	t.read = func(fd uintptr) bool {
		_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&t.count[0])), uintptr(len(t.count)))
		return errno != unix.EAGAIN
	}
	return t, nil
}

// arm makes the ticker tick every period from now on.
func (t *ticker) arm(period time.Duration) error {
	if period == t.period {
		return nil
	}
	spec := unix.NsecToTimespec(period.Nanoseconds())
	t.period, t.due = period, time.Now()
	return unix.TimerfdSettime(int(t.file.Fd()), 0, &unix.ItimerSpec{Interval: spec, Value: spec}, nil)
}

// wait waits for the next tick, or until the ticker is poked, and reports which.
func (t *ticker) wait() (ticked bool) {
	if err := t.conn.Read(t.read); err != nil {
		_ = t.file.SetReadDeadline(time.Time{}) // who poked has said what for, see poke
		return false
	}
	expirations := *(*uint64)(unsafe.Pointer(&t.count)) // native order: timerfd_create(2)
	t.due = t.due.Add(time.Duration(expirations) * t.period)
	return true
}

// poke makes the wait that is under way, or else the next one, return at once. The caller first
// leaves what it wants where the loop looks after every wait.
func (t *ticker) poke() { _ = t.file.SetReadDeadline(time.Unix(0, 1)) }

func (t *ticker) close() { _ = t.file.Close() }
