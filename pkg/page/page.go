// Package page makes pages of reports: of runs, and of suites. A page is HTML in one file, text or Markdown. A guest
// has had a say in what is in reports, so all that is read is bounded, and all that is shown is escaped.
package page

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// What a page holds at most.
const (
	maxFiles    = 10000    // that are looked at in a folder
	maxSections = 200      // runs of which all is shown
	maxBytes    = 24 << 20 // of those sections, about
	maxTable    = 10000    // runs of a group, which is what a suite can have
	maxFirst    = 100      // runs in a list of those to look at first
	maxLabels   = 8        // of a run
	maxProblems = 100      // files that could not be read
)

// The files that a suite leaves of a run, and of itself.
const (
	runReport   = "report.json"
	runStdout   = "stdout.log"
	runStderr   = "stderr.log"
	suiteReport = "suite.json"
)

// Page is what is shown of all that was read.
type Page struct {
	Groups   []*Group
	Problems []string // files that could not be read, and why
	Unread   int      // files more that could not be read
	Missing  int      // runs that have no section, for there are too many
}

// Group is a suite, or the runs that belong to none.
type Group struct {
	Title      string
	Summary    string
	Suite      *suite.Report     // nil: no suite
	Comparison *suite.Comparison // nil: with nothing
	Counts     []Count           // in the order of the runs
	First      []First
	Runs       []*Row // what is worst first
	More       int    // runs that are not among them, for there are too many
}

// Row is a run in a table, and its section.
type Row struct {
	Head
	Seconds  float64
	Ended    string
	Messages uint64
	Drops    uint64
	Labels   []string
	New      bool // it newly fails
	Section  *Section

	rank   int
	result *suite.Result // of a suite
	file   string        // of a run that is in no suite and not alone
	open   func() (*source, error)
	logs   func() []Text
}

// Read reads reports: files, and folders of them. If compare is not empty, it is an earlier report of a suite, with
// which the suite is compared. A file that can't be read is a problem of the page; if there is no other, an error.
func Read(paths []string, compare string) (*Page, error) {
	p := &Page{}
	loose := &Group{Title: "Runs"}
	var first error
	problem := func(name string, err error) {
		if file := (*fs.PathError)(nil); !errors.As(err, &file) && !errors.Is(err, suite.ErrReport) { // these name it
			err = fmt.Errorf("%s: %w", name, err)
		}
		first = cmp.Or(first, err)
		if len(p.Problems) == maxProblems {
			p.Unread++
			return
		}
		p.Problems = append(p.Problems, line(err.Error()))
	}
	for _, path := range paths {
		files, err := expand(path)
		if err != nil {
			problem(path, err)
		}
		for _, file := range files {
			if err := p.add(file, loose); err != nil {
				problem(file, err)
			}
		}
	}
	if len(loose.Runs) == 1 {
		loose.Runs[0].file = "" // who gave one knows which
	}
	if len(loose.Runs) > 0 {
		p.Groups = append(p.Groups, loose)
	}
	if len(p.Groups) == 0 {
		return nil, cmp.Or(first, fmt.Errorf("%w: %s", ErrReport, strings.Join(paths, ", ")))
	}
	if compare != "" {
		if err := p.compare(compare); err != nil {
			return nil, err
		}
	}
	p.finish()
	return p, nil
}

// expand returns the reports of a folder, or the file itself.
func expand(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	if isPlain(filepath.Join(path, suiteReport)) {
		return []string{filepath.Join(path, suiteReport)}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	var files []string
	for _, name := range names {
		full := filepath.Join(path, name)
		switch {
		case strings.HasSuffix(name, ".json") && isPlain(full):
			files = append(files, full)
		case isPlain(filepath.Join(full, suiteReport)):
			files = append(files, filepath.Join(full, suiteReport))
		case isPlain(filepath.Join(full, runReport)):
			files = append(files, filepath.Join(full, runReport))
		}
	}
	if len(names) == maxFiles {
		err = fmt.Errorf("it has more than %d files: the others were not looked at", maxFiles)
	} else if err = nil; len(files) == 0 {
		err = fmt.Errorf("%w: the folder has none, and no %s", ErrReport, suiteReport)
	}
	return files, err
}

func isPlain(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// add adds what is in a file.
func (p *Page) add(file string, loose *Group) error {
	ofSuite, err := isSuite(file)
	if err != nil {
		return err
	}
	if ofSuite {
		r, err := suite.ReadReport(file)
		if err != nil {
			return err
		}
		p.Groups = append(p.Groups, groupOf(r, filepath.Dir(file)))
		return nil
	}
	open := func() (*source, error) { return readSource(anywhere{}, file) }
	s, err := open()
	if err != nil {
		return err
	}
	row := &Row{Head: s.head(), Seconds: s.Duration, Messages: s.Ring.Messages, Drops: s.Ring.Drops,
		file: file, open: open}
	row.Ended, row.Labels = ended(s.Outcome, &s.ExitCode), []string{brief(file)}
	if row.Class == "good" {
		row.rank = slices.Index(ranks, suite.Passed)
	}
	loose.Runs = append(loose.Runs, row)
	return nil
}

// ended is how a run ended, in few words.
func ended(outcome string, code *int) string {
	if code == nil {
		return line(outcome)
	}
	return line(fmt.Sprintf("%s, code %d", outcome, *code))
}

// ranks are the order in which a suite's runs are shown, and classes are how they look.
var (
	ranks   = []suite.Status{suite.Failed, suite.Lost, suite.Flaky, suite.Skipped, suite.Passed}
	classes = map[suite.Status]string{suite.Failed: "bad", suite.Lost: "bad", suite.Flaky: "warn", suite.Skipped: "dull",
		suite.Passed: "good"}
)

// groupOf is a suite, whose runs may have files in its folder.
func groupOf(r *suite.Report, dir string) *Group {
	g := &Group{Title: line(r.Name), Summary: r.Summary(), Suite: r}
	for _, x := range r.Runs {
		row := &Row{Head: Head{brief(x.Name), string(x.Status), classes[x.Status], brief(x.Explain())},
			Seconds: x.Duration, Messages: x.Messages, Drops: x.Drops, rank: slices.Index(ranks, x.Status), result: x}
		for _, l := range x.Labels[:min(len(x.Labels), maxLabels)] {
			row.Labels = append(row.Labels, brief(l))
		}
		if x.Outcome != "" || x.ExitCode != nil {
			row.Ended = ended(string(x.Outcome), x.ExitCode)
		}
		if x.Folder != "" {
			row.open = func() (s *source, err error) {
				err = within(dir, func(root *os.Root) error {
					s, err = readSource(root, filepath.Join(x.Folder, runReport))
					return err
				})
				return s, err
			}
			row.logs = func() []Text { return logs(dir, x.Folder) }
		}
		g.Runs = append(g.Runs, row)
	}
	return g
}

// within opens a folder of results, in which links lead to nothing outside of it.
func within(dir string, do func(*os.Root) error) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}

// logs are the ends of a run's stdout and stderr, of a suite's folder.
func logs(dir, folder string) (texts []Text) {
	_ = within(dir, func(root *os.Root) error { // what can't be read is not shown
		for _, x := range []struct{ title, name string }{{"stdout", runStdout}, {"stderr", runStderr}} {
			f, size, err := openPlain(root, filepath.Join(folder, x.name))
			if err != nil {
				continue
			}
			text, err := io.ReadAll(io.NewSectionReader(f, max(0, size-maxText), maxText))
			_ = f.Close()
			if err == nil && len(text) > 0 {
				t := textOf(x.title, string(text), uint64(size))
				t.Open = true
				texts = append(texts, t)
			}
		}
		return nil
	})
	return texts
}

// compare compares each suite with the old report of its name.
func (p *Page) compare(path string) error {
	old, err := suite.ReadReport(path)
	if err != nil {
		return fmt.Errorf("--compare: %w", err)
	}
	found := false
	for _, g := range p.Groups {
		if g.Suite == nil || g.Suite.Name != old.Name {
			continue
		}
		found = true
		g.Comparison = suite.Compare(old, g.Suite, slower)
		failing := map[string]bool{}
		for _, c := range g.Comparison.Failing {
			failing[c.Name] = true
		}
		for _, row := range g.Runs {
			if row.New = failing[row.result.Name]; row.New {
				row.rank = -1
			}
		}
	}
	if !found {
		return fmt.Errorf("--compare: %s is of the suite %q, and there is no other report of it", path, old.Name)
	}
	return nil
}

// slower is how many times as long a run has to take to be called slower, as in "suite compare".
const slower = 1.5

// finish orders the runs, and reads what sections show, as far as there is room.
func (p *Page) finish() {
	var all []*Row
	for _, g := range p.Groups {
		slices.SortStableFunc(g.Runs, func(a, b *Row) int { return cmp.Compare(a.rank, b.rank) })
		if g.Suite == nil {
			g.Summary = loosely(g.Runs)
		}
		g.Counts, g.First = counts(g.Runs), firstOf(g.Runs)
		if g.More = max(0, len(g.Runs)-maxTable); g.More > 0 {
			g.Runs = g.Runs[:maxTable]
		}
		all = append(all, g.Runs...)
	}
	slices.SortStableFunc(all, func(a, b *Row) int { return cmp.Compare(a.rank, b.rank) }) // of all suites
	sections, room := 0, maxBytes
	for _, row := range all {
		if row.open == nil && row.Class == "dull" { // it was not started
			continue
		}
		if sections == maxSections || room <= 0 {
			p.Missing++
			continue
		}
		sections++
		row.Section = row.section()
		row.Section.Anchor = fmt.Sprintf("run-%d", sections)
		room -= row.Section.weight()
	}
}

// loosely says how runs of no suite ended.
func loosely(runs []*Row) string {
	good := 0
	for _, r := range runs {
		if r.Class == "good" {
			good++
		}
	}
	if len(runs) == 1 {
		return ""
	}
	return fmt.Sprintf("%d runs, %d exited with 0", len(runs), good)
}

// section reads all that is shown of a run.
func (r *Row) section() *Section {
	v := &Section{}
	var called *invocation
	if r.open != nil {
		s, err := r.open()
		if err == nil {
			v, called = s.section(), s.Invocation
		} else if !errors.Is(err, fs.ErrNotExist) || r.result == nil {
			v.Notes = append(v.Notes, line(fmt.Sprintf("Its report can't be read: %v.", err)))
		}
	}
	reason := v.Why
	v.Head = r.Head
	v.Why = cmp.Or(reason, v.Why)
	if r.result != nil { // the suite knows more
		v.Why = cmp.Or(line(r.result.Explain()), reason)
	}
	isOutput := func(t Text) bool { return t.Title == "stdout" || t.Title == "stderr" }
	if r.logs != nil && !slices.ContainsFunc(v.Texts, isOutput) {
		v.Texts = append(v.Texts, r.logs()...)
	}
	if r.result != nil {
		v.ofSuite(r.result, called)
	} else if r.file != "" {
		v.Ended = append(v.Ended, Fact{"report", line(r.file)})
	}
	return v
}

// Bad reports whether something of the group did not end well.
func (g *Group) Bad() bool {
	return g.Suite != nil && !g.Suite.Passed() ||
		slices.ContainsFunc(g.Runs, func(r *Row) bool { return r.Class == "bad" })
}

// First are the runs to look at first.
type First struct {
	Title string
	Runs  []*Row
	More  int
}

// firstOf are the runs that newly fail, and those that are flaky.
func firstOf(runs []*Row) (all []First) {
	for _, x := range []struct {
		title string
		is    func(*Row) bool
	}{
		{"Newly failing", func(r *Row) bool { return r.New }},
		{"Flaky", func(r *Row) bool { return r.Status == string(suite.Flaky) }},
	} {
		var found []*Row
		for _, r := range runs {
			if x.is(r) {
				found = append(found, r)
			}
		}
		if n := len(found); n > 0 {
			shown := min(n, maxFirst)
			all = append(all, First{fmt.Sprintf("%s: %d", x.title, n), found[:shown], n - shown})
		}
	}
	return all
}

// counts says how many runs have each status.
func counts(runs []*Row) (all []Count) {
	for _, r := range runs {
		i := slices.IndexFunc(all, func(c Count) bool { return c.Status == r.Status })
		if i < 0 {
			all, i = append(all, Count{Status: r.Status, Class: r.Class}), len(all)
		}
		all[i].N++
	}
	return all
}

// Count is how many runs have a status.
type Count struct {
	Status string
	Class  string
	N      int
}

// Sections are the runs' sections, in the order of the tables.
func (g *Group) Sections() (all []*Section) {
	for _, r := range g.Runs {
		if r.Section != nil {
			all = append(all, r.Section)
		}
	}
	return all
}
