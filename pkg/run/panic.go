package run

import (
	"regexp"
	"strings"
	"time"
)

// panicTrace is how long a kernel that panics may go on writing why, before the run ends: it may
// neither reset nor end by itself.
const panicTrace = time.Second

// timeStamp is what Linux may put in front of a line, with CONFIG_PRINTK_CALLER the caller too.
const timeStamp = `\[ *\d+\.\d+\](\[[^\]]*\])? `

// panicLine is how Linux begins what it cannot go on from: kernel/panic.c, with or without a time
// stamp in front.
var panicLine = regexp.MustCompile(`(?m)^(` + timeStamp + `)?Kernel panic - not syncing`)

// oopsLine is what may come before it and says why: arch/x86/mm/fault.c, kernel/bug.c.
var oopsLine = regexp.MustCompile(`(?m)^(` + timeStamp +
	`)?(BUG: |Oops: |kernel BUG at |general protection fault|Unable to handle kernel)`)

// kernelPanic returns what a console says of a kernel's panic, from the oops that led to it where
// there was one; "" where there was no panic.
func kernelPanic(console []byte) string {
	at := panicLine.FindIndex(console)
	if at == nil {
		return ""
	}
	start := at[0]
	if oops := oopsLine.FindIndex(console[:start]); oops != nil {
		start = oops[0]
	}
	text := strings.ToValidUTF8(string(console[start:]), "\ufffd")
	return strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\r\n")
}

// maxPanicLine is how much of a console's line is looked at, in bytes.
const maxPanicLine = 256

// panicWatch reads a console as it comes, and closes seen at the first line that begins a panic.
type panicWatch struct {
	seen chan struct{}
	line []byte
	over bool
}

func newPanicWatch() *panicWatch { return &panicWatch{seen: make(chan struct{})} }

func (w *panicWatch) Write(p []byte) (int, error) {
	for _, b := range p {
		switch {
		case w.over:
			return len(p), nil
		case b != '\n':
			if len(w.line) < maxPanicLine {
				w.line = append(w.line, b)
			}
		default:
			if panicLine.Match(w.line) {
				w.over = true
				close(w.seen)
			}
			w.line = w.line[:0]
		}
	}
	return len(p), nil
}
