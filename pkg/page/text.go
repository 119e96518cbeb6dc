package page

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// What the forms for terminals and job summaries show of a run.
const (
	lastLines = 20 // of each text
	firstRows = 20 // of each table
	maxRuns   = 50 // of no suite
)

// form is how a page is written for people without a browser.
type form struct {
	suite   func(*suite.Report, io.Writer) error
	compare func(*suite.Comparison, io.Writer) error
	run     func(*Section, io.Writer)
	line    func(string) string // a line of its own, printable already
}

// Text writes the page for a terminal.
func (p *Page) Text(w io.Writer) error {
	return p.write(w, form{(*suite.Report).Text, (*suite.Comparison).Text, (*Section).text,
		func(s string) string { return s + "\n" }})
}

// Markdown writes the page as CI systems show it.
func (p *Page) Markdown(w io.Writer) error {
	return p.write(w, form{(*suite.Report).Markdown, (*suite.Comparison).Markdown, (*Section).markdown,
		func(s string) string { return "- " + report.Markdown(s) + "\n" }})
}

func (p *Page) write(w io.Writer, f form) error {
	var b strings.Builder
	for _, problem := range p.Problems {
		b.WriteString(f.line("not read: " + problem))
	}
	if p.Unread > 0 {
		b.WriteString(f.line(fmt.Sprintf("and %d more", p.Unread)))
	}
	for i, g := range p.Groups {
		if i > 0 || len(p.Problems) > 0 {
			b.WriteString("\n")
		}
		if g.Suite == nil {
			g.runs(&b, f)
			continue
		}
		if err := f.suite(g.Suite, &b); err != nil {
			return err
		}
		if g.Comparison != nil {
			b.WriteString("\n")
			if err := f.compare(g.Comparison, &b); err != nil {
				return err
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// runs are those that belong to no suite.
func (g *Group) runs(b *strings.Builder, f form) {
	sections := g.Sections()
	for i, v := range sections[:min(len(sections), maxRuns)] {
		if i > 0 {
			b.WriteString("\n")
		}
		f.run(v, b)
	}
	if more := len(g.Runs) + g.More - min(len(sections), maxRuns); more > 0 {
		b.WriteString("\n" + f.line(fmt.Sprintf("and %d runs more, which ended no worse", more)))
	}
}

// end is the last lines of a text.
func (t Text) end() string {
	lines := strings.Split(strings.TrimRight(t.Body, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-lastLines):], "\n")
}

// shown are the tables and the texts that are shown without being asked for, and all facts of how the run ended.
func (v *Section) shown() (tables []Table, texts []Text) {
	for _, t := range v.Tables {
		if t.Open {
			tables = append(tables, t)
		}
	}
	for _, t := range v.Texts {
		if t.Open {
			texts = append(texts, t)
		}
	}
	return tables, texts
}

// text writes a run for a terminal.
func (v *Section) text(w io.Writer) {
	fmt.Fprintf(w, "%s: %s: %s\n", v.Name, v.Status, v.Why)
	for _, f := range v.Ended {
		fmt.Fprintf(w, "  %-22s %s\n", f.Name, f.Value)
	}
	for _, n := range v.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	if len(v.Command) > 0 {
		fmt.Fprintf(w, "  %-22s %s\n", "to run it again", strings.Join(v.Command, " "))
	}
	tables, texts := v.shown()
	for _, t := range tables {
		fmt.Fprintf(w, "\n%s:\n", t.Title)
		for _, row := range t.Rows[:min(len(t.Rows), firstRows)] {
			fmt.Fprintf(w, "  %s\n", strings.Join(words(row), "  "))
		}
		if more := len(t.Rows) - firstRows; more > 0 {
			fmt.Fprintf(w, "  … and %d more\n", more)
		}
	}
	for _, t := range texts {
		fmt.Fprintf(w, "\nend of %s:\n  | %s\n", t.Title, strings.ReplaceAll(t.end(), "\n", "\n  | "))
	}
}

// words are what the cells of a row have to say.
func words(row []Cell) (all []string) {
	for _, c := range row {
		if c.Text != "" {
			all = append(all, c.Text)
		}
	}
	return all
}

// markdown writes a run as CI systems show it.
func (v *Section) markdown(w io.Writer) {
	fmt.Fprintf(w, "### %s: %s\n\n%s\n\n", report.Markdown(v.Name), report.Markdown(v.Status), report.Markdown(v.Why))
	for _, f := range v.Ended {
		fmt.Fprintf(w, "- %s: %s\n", report.Markdown(f.Name), report.Markdown(f.Value))
	}
	for _, n := range v.Notes {
		fmt.Fprintf(w, "- %s\n", report.Markdown(n))
	}
	tables, texts := v.shown()
	for _, t := range tables {
		fmt.Fprintf(w, "\n%s\n\n", report.Markdown(t.Title))
		row := func(texts []string) { fmt.Fprintf(w, "| %s |\n", strings.Join(texts, " | ")) }
		row(t.Head)
		row(slices.Repeat([]string{"---"}, len(t.Head)))
		for _, cells := range t.Rows[:min(len(t.Rows), firstRows)] {
			escaped := make([]string, len(cells))
			for i, c := range cells {
				escaped[i] = report.Markdown(c.Text)
			}
			row(escaped)
		}
		if more := len(t.Rows) - firstRows; more > 0 {
			fmt.Fprintf(w, "\nand %d more\n", more)
		}
	}
	for _, t := range texts {
		fmt.Fprintf(w, "\nThe end of %s:\n\n%s", report.Markdown(t.Title), report.MarkdownBlock(t.end()))
	}
	if len(v.Command) > 0 {
		fmt.Fprintf(w, "\nTo run it again:\n\n%s", report.MarkdownBlock(strings.Join(v.Command, " ")))
	}
}
