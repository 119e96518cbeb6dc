package run

import (
	"bytes"
	"slices"
	"sync"
	"time"
)

// tail is an io.Writer that keeps the last bytes written to it and never waits.
type tail struct {
	mu    sync.Mutex
	buf   []byte // grows to limit, then is a ring that begins at total % limit
	limit int
	total uint64 // bytes ever written
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.write(p)
	return len(p), nil
}

func (t *tail) write(p []byte) {
	if over := len(p) - t.limit; over > 0 { // as if they had been written
		t.total += uint64(over)
		p = p[over:]
		t.buf = append(t.buf, make([]byte, t.limit-len(t.buf))...)
	}
	if room := min(t.limit-len(t.buf), len(p)); room > 0 {
		t.buf = append(t.buf, p[:room]...)
		t.total += uint64(room)
		p = p[room:]
	}
	for len(p) > 0 {
		n := copy(t.buf[t.total%uint64(t.limit):], p)
		t.total += uint64(n)
		p = p[n:]
	}
}

// bytes returns what was kept, and how much came before it.
func (t *tail) bytes() (kept []byte, omitted uint64) { return t.from(0) }

// from returns what is kept behind the first n bytes, and where that begins.
func (t *tail) from(n uint64) (kept []byte, at uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fromLocked(n)
}

func (t *tail) fromLocked(n uint64) (kept []byte, at uint64) {
	begin := t.total - uint64(len(t.buf))
	at = min(max(n, begin), t.total)
	split := int(begin % uint64(t.limit)) // where the oldest byte is
	older, newer, skip := t.buf[split:], t.buf[:split], int(at-begin)
	if skip > len(older) {
		older, newer, skip = nil, newer[skip-len(older):], 0
	}
	return slices.Concat(older[skip:], newer), at
}

// written returns how many bytes were ever written.
func (t *tail) written() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// consoleTail is the tail of a console, with the times of its lines.
type consoleTail struct {
	tail
	since func() time.Duration
	times []lineTime // of lines that came lineTimeStep apart, or further
	line  bool       // the last byte did not end a line
}

// lineTime is when a line began.
type lineTime struct {
	offset uint64 // of all bytes
	at     time.Duration
}

// The times that a console keeps.
const (
	lineTimeStep = 10 * time.Millisecond
	maxLineTimes = 1 << 12
)

func (c *consoleTail) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.since()
	for rest, offset := p, c.total; len(rest) > 0; {
		if !c.line {
			c.note(lineTime{offset, at})
		}
		n := bytes.IndexByte(rest, '\n') + 1
		if c.line = n == 0; c.line {
			break
		}
		rest, offset = rest[n:], offset+uint64(n)
	}
	c.write(p)
	return len(p), nil
}

// note keeps a line's time, unless the last one is about the same.
func (c *consoleTail) note(t lineTime) {
	if n := len(c.times); n > 0 && t.at-c.times[n-1].at < lineTimeStep {
		return
	}
	if len(c.times) == maxLineTimes {
		c.times = append(c.times[:0], c.times[maxLineTimes/2:]...)
	}
	c.times = append(c.times, t)
}

// lineTimes returns the times of lines that are kept: line numbers from 0 in what bytes returns.
func (c *consoleTail) lineTimes() (times []LineTime) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept, begin := c.fromLocked(0)
	line, seen := 0, uint64(0)
	for _, t := range c.times {
		if t.offset < begin {
			continue
		}
		at := t.offset - begin
		line += bytes.Count(kept[seen:at], []byte{'\n'})
		seen = at
		times = append(times, LineTime{line, t.at})
	}
	return times
}
