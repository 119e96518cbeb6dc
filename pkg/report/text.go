package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// consoleLines is how much of the console a summary shows where something went wrong.
const consoleLines = 20

// Text writes a summary for people. With colour it uses a terminal's colours.
func Text(w io.Writer, r *run.Result, colour bool) error {
	var b strings.Builder
	paint := func(code, s string) string {
		if !colour {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	good := r.Outcome == run.Exited && r.ExitCode == 0
	head := "1;31" // bold red
	if good {
		head = "1;32" // bold green
	}
	fmt.Fprintf(&b, "\n%s: %s\n", paint(head, string(r.Outcome)), Printable(r.Reason))
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-11s "+format+"\n", append([]any{name}, args...)...)
	}
	line("exit code", "%d", r.ExitCode)
	line("duration", "%v", r.Duration.Round(time.Millisecond))
	types := map[string]int{}
	for name, n := range r.Ring.ByType {
		if n > 0 {
			types[name] = int(n)
		}
	}
	if len(types) == 0 {
		line("messages", "0")
	} else {
		line("messages", "%d (%s), %d bytes", r.Ring.Messages, counts(types), r.Ring.Bytes)
	}
	line("drops", "%d", r.Ring.Drops)
	if r.Ring.CRCErrors > 0 {
		line("damaged", "%d messages with a wrong CRC", r.Ring.CRCErrors)
	}
	if n := r.Ring.FaultCount(); n > 0 {
		line("faults", "%d, %d bytes of the ring given up", n, r.Ring.Lost)
		for _, f := range r.Faults[:min(len(r.Faults), 8)] {
			line("", "%s: %s", f.Kind, f.Detail)
		}
	}
	if r.Omitted.OutputBytes > 0 {
		line("left out", "%d bytes of output that nobody read", r.Omitted.OutputBytes)
	}
	for _, d := range r.DumpRequests[:min(len(r.DumpRequests), 8)] {
		line("dump", "asked for after %v: %s", d.At.Round(time.Millisecond), d.Why)
	}
	b.WriteString(schedulerText(r.Scheduler, good))
	if r.Crash != nil {
		fmt.Fprintf(&b, "\ncrash:\n%s\n", indent(PrintableLines(*r.Crash)))
	}
	if !good {
		b.WriteString(cpusText(r))
	}
	console := strings.TrimRight(strings.ReplaceAll(string(r.Console), "\r\n", "\n"), "\r\n")
	if !good && !r.Panicked && console != "" {
		lines := strings.Split(console, "\n")
		fmt.Fprintf(&b, "\nend of the console:\n%s\n",
			indent(PrintableLines(strings.Join(lines[max(0, len(lines)-consoleLines):], "\n"))))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

// counts is a list of names and how many there are of each, most first.
func counts(n map[string]int) string {
	names := slices.SortedFunc(maps.Keys(n), func(a, b string) int {
		if n[a] != n[b] {
			return n[b] - n[a]
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, n[name])
	}
	return strings.Join(names, ", ")
}
