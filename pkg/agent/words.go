package agent

import (
	"strconv"
	"strings"
	"sync"
)

// words is the end of a process's output.
type words struct {
	limit int // bytes

	mu   sync.Mutex
	text []byte
}

// Write never fails.
func (w *words) Write(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p...)
	w.text = w.text[max(0, len(w.text)-w.limit):]
}

// What last says at most.
const (
	lastLines = 3
	lastBytes = 600
)

// verifiersTrace reports whether a line is one of those in which the verifier says how far it came: an instruction or
// a state, both with a number in front, a line of source, or its statistics (kernel/bpf/verifier.c,
// print_verifier_state, print_verification_stats).
func verifiersTrace(line string) bool {
	number, rest, ok := strings.Cut(line, ":")
	if _, err := strconv.Atoi(number); ok && err == nil && strings.HasPrefix(rest, " ") {
		return true
	}
	for _, mark := range []string{"; ", "cur state: ", "old state: "} {
		if strings.HasPrefix(line, mark) {
			return true
		}
	}
	return strings.HasPrefix(line, "processed ") && strings.Contains(line, " insns (limit ")
}

// last returns the last lines in one, behind a colon, or "" where there are none. A program of Go's that panics says
// what happened first, and then where; the kernel's verifier of BPF says it between what it went through.
func (w *words) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	for line := range strings.Lines(string(w.text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			lines = []string{line}
			break
		}
		if line != "" && !verifiersTrace(line) {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	text := strings.Join(lines[max(0, len(lines)-lastLines):], "; ")
	if len(text) > lastBytes {
		text = "…" + strings.ToValidUTF8(text[len(text)-lastBytes:], "")
	}
	return ": " + text
}
