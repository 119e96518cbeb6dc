package agent

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// logDevice is where the kernel's log is read, a record a read: Linux, Documentation/ABI/testing/dev-kmsg.
const logDevice = "/dev/kmsg"

// logRecord is how long a record can be, in bytes: include/linux/printk.h, PRINTK_MESSAGE_MAX.
const logRecord = 8 << 10

// kernelLog reads the kernel's log from the moment of its opening on.
type kernelLog struct {
	fd  int
	buf []byte
}

// logLine is one line of it.
type logLine struct {
	at   time.Duration // since boot
	text string
}

func openKernelLog(path string) (*kernelLog, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// What was said before is another's. Where the file can't be sought there is nothing before.
	_, _ = unix.Seek(fd, 0, unix.SEEK_END)
	return &kernelLog{fd, make([]byte, logRecord)}, nil
}

func (l *kernelLog) close() { unix.Close(l.fd) }

// wait returns when there is something to read, at the latest after d.
func (l *kernelLog) wait(d time.Duration) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
}

// read gives each line that has come to hear, and reports whether there was any.
func (l *kernelLog) read(hear func(logLine)) (any bool) {
	for {
		n, err := unix.Read(l.fd, l.buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // the log has overtaken its reader
			continue
		case err != nil || n <= 0:
			return any
		}
		any = true
		for record := range strings.Lines(string(l.buf[:n])) {
			if line, ok := parseLogLine(strings.TrimSuffix(record, "\n")); ok {
				hear(line)
			}
		}
	}
}

// parseLogLine reads a record's first line: its level, number, time in microseconds and flags, and behind a semicolon
// its text. The lines behind it begin with a blank.
func parseLogLine(record string) (l logLine, ok bool) {
	head, text, ok := strings.Cut(record, ";")
	fields := strings.Split(head, ",")
	if !ok || len(fields) < 4 || strings.HasPrefix(record, " ") {
		return l, false
	}
	us, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || us < 0 || us > int64(1<<63-1)/int64(time.Microsecond) {
		return l, false
	}
	return logLine{time.Duration(us) * time.Microsecond, text}, true
}
