package suite

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/junit"
	"github.com/ktstr/ktstr-vmm/pkg/report"
)

// seconds is a duration as reports have it.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Explain says why a run did not just pass, in one line, or "".
func (x *Result) Explain() string {
	switch x.Status {
	case Passed:
		return ""
	case Flaky:
		return fmt.Sprintf("passed at attempt %d; before: %s", len(x.Earlier)+1, x.Earlier[len(x.Earlier)-1].Reason)
	case Failed:
		if x.Expect != nil {
			return fmt.Sprintf("expected %v, got %s: %s", x.Expect, x.got(), x.Reason)
		}
	}
	return x.Reason
}

// got is how a run ended, as Expect says it.
func (x *Result) got() string { return Expect{x.Outcome, x.ExitCode}.String() }

// words says how many runs have each status that any has.
func (c Counts) words() string {
	var words []string
	for _, s := range Statuses() {
		if c[s] > 0 {
			words = append(words, fmt.Sprintf("%d %s", c[s], s))
		}
	}
	if len(words) == 0 {
		return "no runs"
	}
	return strings.Join(words, ", ")
}

// Line is a run in one line: its status, duration and name, and why it did not just pass.
func (x *Result) Line() string {
	line := fmt.Sprintf("%-7s %7.2fs  %s", x.Status, x.Duration, report.Printable(x.Name))
	if why := x.Explain(); why != "" {
		line += ": " + report.Printable(why)
	}
	return line
}

// Text writes what became of the suite for people: each run that did not just pass, with the last lines of its
// console, and how many there are of each kind.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	for _, x := range r.Runs {
		if x.Status != Passed {
			b.WriteString(x.Line() + "\n" + x.tailText())
		}
	}
	fmt.Fprintln(&b, r.Summary())
	_, err := io.WriteString(w, b.String())
	return err
}

// tailText are the last lines of a run's console, indented.
func (x *Result) tailText() string {
	var b strings.Builder
	for _, line := range x.Tail {
		b.WriteString("    | " + report.Printable(line) + "\n")
	}
	return b.String()
}

// InPlace is a run that is over, for people: its line, and the last lines of its console if it did not pass.
func (x *Result) InPlace() string { return x.Line() + "\n" + x.tailText() }

// Summary says in one line what became of the suite.
func (r *Report) Summary() string {
	name := r.Name
	if r.Shard != nil {
		name += " " + r.Shard.String()
	}
	text := fmt.Sprintf("%s: %s in %.2fs", name, r.Counts.words(), r.Duration)
	if r.Interrupted != "" {
		text += "; ended early by " + r.Interrupted
	}
	return report.Printable(text)
}

// JUnit writes the report as a JUnit test suite. A run that ended in another way than expected is a failure, one that
// was lost an error; a flaky one has its earlier attempts with it.
func (r *Report) JUnit(w io.Writer) error {
	s := junit.Suite{Name: r.Name, StartedAt: r.StartedAt, Duration: seconds(r.Duration)}
	for _, x := range r.Runs {
		c := junit.Case{Name: x.Name, Class: r.Name, Duration: seconds(x.Duration)}
		problem := &junit.Problem{Type: string(x.Outcome), Message: x.Explain(), Text: strings.Join(x.Tail, "\n")}
		switch x.Status {
		case Failed:
			c.Failure = problem
		case Lost:
			c.Error = problem
		case Skipped:
			c.Skipped = problem
		}
		for _, a := range x.Earlier {
			c.Earlier = append(c.Earlier, junit.Problem{Type: string(a.Outcome), Message: a.Reason})
		}
		s.Cases = append(s.Cases, c)
	}
	return junit.Write(w, s)
}

// Markdown writes a summary as CI systems show it: what did not just pass, with the last lines of its console.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n", report.Markdown(r.Summary()))
	rest := slices.DeleteFunc(slices.Clone(r.Runs), func(x *Result) bool { return x.Status == Passed })
	if len(rest) > 0 {
		b.WriteString("\n| status | run | seconds | |\n|---|---|---|---|\n")
	}
	for _, x := range rest {
		fmt.Fprintf(&b, "| %s | %s | %.2f | %s |\n", x.Status, report.Markdown(x.Name), x.Duration,
			report.Markdown(x.Explain()))
	}
	for _, x := range rest {
		if len(x.Tail) == 0 {
			continue
		}
		lines := make([]string, len(x.Tail))
		for i, line := range x.Tail {
			lines[i] = report.Printable(line)
		}
		fmt.Fprintf(&b, "\nThe last lines of %s:\n\n%s", report.Markdown(x.Name),
			report.MarkdownBlock(strings.Join(lines, "\n")))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
