package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is what one line of the summary counts.
type row struct{ tier, backend, arch, kernel, where string }

func (r row) compare(o row) int {
	tiers := []string{"unit", "machine", "linux"}
	return cmp.Or(
		cmp.Compare(slices.Index(tiers, r.tier), slices.Index(tiers, o.tier)),
		cmp.Compare(r.backend, o.backend),
		cmp.Compare(slices.Index(architectures, r.arch), slices.Index(architectures, o.arch)),
		slices.Compare(numbersOf(r.kernel), numbersOf(o.kernel)),
		cmp.Compare(r.kernel, o.kernel),
		cmp.Compare(r.where, o.where),
	)
}

func numbersOf(version string) []int {
	var n []int
	for part := range strings.SplitSeq(version, ".") {
		var i int
		_, _ = fmt.Sscan(part, &i) // what is no number is 0
		n = append(n, i)
	}
	return n
}

type count struct{ passed, failed, skipped int }

// summary is what became of all tests, wherever they ran.
type summary struct {
	counts  map[row]*count
	failed  []string // tests and packages, and where
	skipped []string // tests that ran nowhere, and why
}

// identity is a test as it is known everywhere that it may run.
type identity struct{ suite, test string }

func (p *results) identity(test string) identity {
	suite := p.pkg
	if p.kernel != "" { // a suite of its own for each back end, architecture and kernel
		suite += " [" + p.backend + ", " + p.arch + ", " + p.kernel + "]"
	}
	return identity{suite, test}
}

// summarize counts tests that have no subtests, each where it ran. One that was skipped at one
// place and ran at another was not skipped.
func summarize(all []*results) *summary {
	s := &summary{counts: map[row]*count{}}
	ran, parent, backend := map[identity]bool{}, map[identity]bool{}, map[identity]string{}
	for _, p := range all {
		for name, t := range p.tests {
			id := p.identity(name)
			ran[id] = ran[id] || t.action != "skip"
			parents(name, func(above string) { parent[p.identity(above)] = true })
			backend[id] = cmp.Or(backend[id], p.saidBackend(name))
		}
	}
	told := map[identity]bool{}
	for _, p := range all {
		failed := map[string]bool{} // with what failed in them
		broken := p.failed
		for _, name := range slices.Backward(p.order) { // subtests first
			t, id := p.tests[name], p.identity(name)
			bad := t.action == "fail" || t.action == "run"
			if parent[id] && (!bad || failed[name]) {
				continue
			}
			c := s.count(p.rowOf(cmp.Or(backend[id], p.backend), p.archOf(name)))
			switch {
			case bad:
				c.failed++
				broken = false
				s.failed = append(s.failed,
					fmt.Sprintf("%s %s (%s)%s", p.pkg, name, p.place(), map[bool]string{true: ": it did not end"}[t.action == "run"]))
				parents(name, func(above string) { failed[above] = true })
			case t.action == "pass":
				c.passed++
			case !ran[id] && !told[id]:
				told[id] = true
				c.skipped++
				s.skipped = append(s.skipped, fmt.Sprintf("%s %s: %s", p.pkg, name, reason(t.output)))
			}
		}
		if broken { // by itself: it was not built, or ended with an error though its tests passed
			s.count(p.rowOf(p.backend, p.arch)).failed++
			s.failed = append(s.failed, fmt.Sprintf("%s (%s): %s", p.pkg, p.place(), strings.TrimSpace(p.output)))
		}
	}
	slices.Sort(s.failed)
	slices.Sort(s.skipped)
	return s
}

func (s *summary) count(r row) *count {
	if s.counts[r] == nil {
		s.counts[r] = &count{}
	}
	return s.counts[r]
}

// backendOf is the back end that a test runs on: its name says so, or it or the label does.
func (p *results) backendOf(name string) string { return cmp.Or(p.saidBackend(name), p.backend) }

// saidBackend is backendOf wherever the test runs: "" if it runs without a machine, too.
func (p *results) saidBackend(name string) string {
	return p.said(name, backends, func(t *outcome) string { return t.backend })
}

// archOf is the architecture of a test's guest: its name says so, or it or the label does. Where none of them does
// it is x86_64, as which machine tests were first written.
func (p *results) archOf(name string) string {
	return cmp.Or(p.said(name, architectures, func(t *outcome) string { return t.arch }), p.arch, "x86_64")
}

// said is one of some words: a part of a test's name, or what the test or one above it said.
func (p *results) said(name string, words []string, of func(*outcome) string) string {
	for part := range strings.SplitSeq(name, "/") {
		if slices.Contains(words, part) {
			return part
		}
	}
	word := of(p.tests[name])
	parents(name, func(above string) {
		if t, ok := p.tests[above]; ok {
			word = cmp.Or(word, of(t))
		}
	})
	return word
}

func (p *results) rowOf(backend, arch string) row {
	switch {
	case p.kernel != "":
		return row{"linux", p.backend, p.arch, p.kernel, p.where}
	case backend != "":
		return row{"machine", backend, arch, "", p.where}
	}
	return row{"unit", "", "", "", p.where}
}

func (p *results) place() string {
	if p.backend == "" {
		return p.where
	}
	return strings.Trim(p.label.String(), "[]")
}

// reason is the last line that a skipped test said, without its place in the source.
func reason(output string) string {
	text := ""
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			text = line
		}
	}
	return text
}

// lacking are the tiers that ran nowhere, of each back end, architecture and kernel.
func (s *summary) lacking() []string {
	ran := map[row]bool{}
	for r, c := range s.counts {
		r.where = ""
		ran[r] = ran[r] || c.passed+c.failed > 0
	}
	wanted := []row{{tier: "unit"}}
	for _, p := range places {
		wanted = append(wanted, row{tier: "machine", backend: p.backend, arch: p.arch})
		for _, k := range kernels {
			if !p.has(k) {
				continue
			}
			wanted = append(wanted, row{tier: "linux", backend: p.backend, arch: p.arch, kernel: k})
		}
	}
	wanted = append(wanted, row{tier: "machine", backend: "kvm", arch: "arm64"})
	var lacking []string
	for _, r := range wanted {
		if !ran[r] {
			lacking = append(lacking, strings.Join(strings.Fields(r.tier+" "+r.backend+" "+r.arch+" "+r.kernel), " "))
		}
	}
	return lacking
}

// print writes the closing lines, and reports whether all is well: no test failed and, in CI,
// nothing was left out.
func (s *summary) print(w io.Writer, ci bool) bool {
	lacking := s.lacking()
	for _, list := range []struct {
		title string
		lines []string
	}{{"ran nowhere", lacking}, {"skipped wherever they could have run", s.skipped}, {"failed", s.failed}} {
		if len(list.lines) > 0 {
			fmt.Fprintf(w, "\n%s:\n  %s\n", list.title, strings.Join(list.lines, "\n  "))
		}
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "tier\tback end\tguest\tkernel\twhere\tran\tpassed\tfailed\tskipped")
	var sum count
	rows := make([]row, 0, len(s.counts))
	for r := range s.counts {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, row.compare)
	for _, r := range rows {
		c := *s.counts[r]
		sum = count{sum.passed + c.passed, sum.failed + c.failed, sum.skipped + c.skipped}
		if c != (count{}) {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\n", r.tier, cmp.Or(r.backend, "-"),
				cmp.Or(r.arch, "-"), cmp.Or(r.kernel, "-"), r.where, c.passed+c.failed, c.passed, c.failed, c.skipped)
		}
	}
	table.Flush()
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", sum.passed, sum.failed, sum.skipped)
	return sum.failed == 0 && (!ci || sum.skipped == 0 && len(lacking) == 0)
}
