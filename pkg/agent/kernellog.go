package agent

import (
	"errors"
	"os"
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
	fd    int
	buf   []byte
	ahead time.Duration // by how much its clock is ahead of the agent's, CLOCK_MONOTONIC
}

// logLine is one line of it.
type logLine struct {
	at   time.Duration // since boot, as sinceBoot has it
	text string
}

func openKernelLog(path string) (*kernelLog, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// What was said before is another's. Where the file can't be sought there is nothing before.
	_, _ = unix.Seek(fd, 0, unix.SEEK_END)
	return &kernelLog{fd: fd, buf: make([]byte, logRecord)}, nil
}

// clockLine is what the agent logs to see what the log's clock says. It is a message of the level that no console shows
// by default.
const clockLine = "ktstr-vmm: watching the scheduler under test"

// setClock compares the log's clock, which has not begun when the agent's has, with the agent's. Where the log does not
// take a line they count as the same.
func (l *kernelLog) setClock(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	before := sinceBoot()
	if _, err := f.WriteString("<7>" + clockLine + "\n"); err != nil {
		return err
	}
	l.read(func(line logLine) {
		if line.text == clockLine {
			l.ahead = line.at - before
		}
	})
	return nil
}

func (l *kernelLog) close() { unix.Close(l.fd) }

// read gives each line that has come to hear.
func (l *kernelLog) read(hear func(logLine)) {
	for {
		n, err := unix.Read(l.fd, l.buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // the log has overtaken its reader
			continue
		case err != nil || n <= 0:
			return
		}
		for record := range strings.Lines(string(l.buf[:n])) {
			if line, ok := parseLogLine(strings.TrimSuffix(record, "\n")); ok {
				line.at = max(0, line.at-l.ahead)
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
