package suite

import (
	"fmt"
	"io"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/report"
)

// minSlower is how many seconds more a run has to take to be called slower: below that it is chance.
const minSlower = 0.5

// Comparison is what changed from one report of a suite to another.
type Comparison struct {
	Schema  int      `json:"schema"`
	Old     Summary  `json:"old"`
	New     Summary  `json:"new"`
	Failing []Change `json:"newly_failing"` // those that passed before, and that are new
	Still   []Change `json:"still_failing"`
	Fixed   []Change `json:"fixed"`
	Flaky   []Change `json:"flaky"` // in the new one
	Slower  []Slower `json:"slower"`
	Missing []string `json:"missing"` // in the new one
	Skipped []Change `json:"skipped"` // in the new one, and not in the old one
	Added   []string `json:"added"`
}

// Summary is a report in short.
type Summary struct {
	Name     string  `json:"name"`
	Version  string  `json:"version"`
	Duration float64 `json:"duration_seconds"`
	Counts   Counts  `json:"counts"`
}

// Change is a run whose status is worth a look.
type Change struct {
	Name   string `json:"name"`
	Old    Status `json:"old,omitempty"` // empty: it was not there
	New    Status `json:"new"`
	Reason string `json:"reason,omitempty"`
}

// Slower is a run that took longer, or did less in the same time.
type Slower struct {
	Name string  `json:"name"`
	What string  `json:"what"` // see the constants
	Old  float64 `json:"old"`
	New  float64 `json:"new"`
}

// What can be slower.
const (
	SlowerDuration   = "duration_seconds"
	SlowerIterations = "iterations_per_second" // by the last STIM
)

// Compare compares two reports. Slower is by how much a run has to be slower to be named: 1.5 is half as much again.
func Compare(old, now *Report, slower float64) *Comparison {
	c := &Comparison{Schema: schemaVersion, Old: old.short(), New: now.short(),
		Failing: []Change{}, Still: []Change{}, Fixed: []Change{}, Flaky: []Change{}, Slower: []Slower{},
		Missing: []string{}, Skipped: []Change{}, Added: []string{}}
	before := map[string]*Result{}
	for _, x := range old.Runs {
		before[x.Name] = x
	}
	seen := map[string]bool{}
	for _, x := range now.Runs {
		seen[x.Name] = true
		c.add(before[x.Name], x, slower)
	}
	for _, x := range old.Runs {
		if !seen[x.Name] {
			c.Missing = append(c.Missing, x.Name)
		}
	}
	return c
}

func (r *Report) short() Summary {
	r.count()
	return Summary{r.Name, r.Version, r.Duration, r.Counts}
}

func (c *Comparison) add(old, now *Result, slower float64) {
	change := Change{Name: now.Name, New: now.Status, Reason: now.Explain()}
	if old == nil {
		c.Added = append(c.Added, now.Name)
	} else {
		change.Old = old.Status
	}
	was := old != nil && old.Status.Bad()
	switch {
	case now.Status.Bad() && was:
		c.Still = append(c.Still, change)
	case now.Status.Bad():
		c.Failing = append(c.Failing, change)
	case now.Status == Skipped && (old == nil || old.Status != Skipped):
		c.Skipped = append(c.Skipped, change)
	case now.Status == Skipped:
	case now.Status == Flaky:
		c.Flaky = append(c.Flaky, change)
	case was:
		c.Fixed = append(c.Fixed, change)
	}
	if old == nil || old.Status.Bad() || now.Status.Bad() || old.Status == Skipped || now.Status == Skipped {
		return
	}
	if a, b := old.rate(), now.rate(); a > 0 && b*slower < a {
		c.Slower = append(c.Slower, Slower{now.Name, SlowerIterations, a, b})
	}
	if a, b := old.Duration, now.Duration; b > a*slower && b > a+minSlower {
		c.Slower = append(c.Slower, Slower{now.Name, SlowerDuration, a, b})
	}
}

// rate is how many iterations a second the guest did, or 0.
func (a *Attempt) rate() float64 {
	if a.IterationsMS == 0 {
		return 0
	}
	return float64(a.Iterations) * 1000 / float64(a.IterationsMS)
}

// Worse reports whether something newly fails, or was not run that was before.
func (c *Comparison) Worse() bool { return len(c.Failing)+len(c.Missing)+len(c.Skipped) > 0 }

// JSON writes the comparison as one object.
func (c *Comparison) JSON(w io.Writer) error { return report.EncodeJSON(w, c) }

// Text writes the comparison for people.
func (c *Comparison) Text(w io.Writer) error {
	return c.write(w, report.Printable, "%s:\n", "  %s\n", "")
}

// Markdown writes the comparison as CI systems show it.
func (c *Comparison) Markdown(w io.Writer) error {
	return c.write(w, report.Markdown, "\n#### %s\n\n", "- %s\n", "### ")
}

// write writes headings and items, each in its format, with texts escaped.
func (c *Comparison) write(w io.Writer, escape func(string) string, heading, item, title string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\n", title, escape(fmt.Sprintf("%s: before, %s in %.2f s; now, %s in %.2f s", c.New.Name,
		c.Old.Counts.words(), c.Old.Duration, c.New.Counts.words(), c.New.Duration)))
	section := func(name string, items []string) {
		if len(items) == 0 {
			return
		}
		fmt.Fprintf(&b, heading, name)
		for _, text := range items {
			fmt.Fprintf(&b, item, escape(text))
		}
	}
	section("newly failing", changes(c.Failing))
	section("missing", c.Missing)
	section("skipped", changes(c.Skipped))
	section("still failing", changes(c.Still))
	section("flaky", changes(c.Flaky))
	var slower []string
	for _, s := range c.Slower {
		what := strings.ReplaceAll(s.What, "_", " ")
		slower = append(slower, fmt.Sprintf("%s: %s was %.4g, is %.4g", s.Name, what, s.Old, s.New))
	}
	section("slower", slower)
	section("fixed", changes(c.Fixed))
	section("added", c.Added)
	_, err := io.WriteString(w, b.String())
	return err
}

func changes(all []Change) (texts []string) {
	for _, x := range all {
		text := x.Name
		if x.Reason != "" {
			text += ": " + x.Reason
		}
		texts = append(texts, text)
	}
	return texts
}
