package page

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// What a section shows at most.
const (
	maxText  = 64 << 10 // bytes of a text, at its end
	maxLine  = 2 << 10  // bytes of what is a line
	maxBrief = 300      // bytes of a text in the table of all runs
	maxRows  = 500      // of a table
	maxLooks = 8
)

// Section is all that a page shows of a run. All of it is bounded, and printable.
type Section struct {
	Head
	Anchor      string
	Ended       []Fact
	Command     []string // to run it again: words of a shell's
	Timeline    *Timeline
	Tables      []Table // results first
	Texts       []Text
	Ring        []Fact
	Environment []Fact
	Notes       []string // what is not here, and why
}

// Head is a run in a line.
type Head struct {
	Name   string
	Status string // a word
	Class  string // good, bad, warn or dull
	Why    string
}

// Fact is a name and what is known by it.
type Fact struct{ Name, Value string }

// Table is a table of a section.
type Table struct {
	Title string
	Head  []string
	Rows  [][]Cell
	Note  string
	Open  bool
}

// Cell is a cell of a table.
type Cell struct{ Text, Class string }

// Short reports whether a cell is too short to be broken.
func (c Cell) Short() bool { return len(c.Text) <= 14 }

// Text is a text of many lines.
type Text struct {
	Title string
	Body  string
	Note  string
	Open  bool
}

// facts collects what is known; what is not known is left out.
type facts []Fact

func (f *facts) add(name, format string, args ...any) {
	*f = append(*f, Fact{line(name), line(fmt.Sprintf(format, args...))})
}

func (f *facts) text(name, value string) {
	if value != "" {
		f.add(name, "%s", value)
	}
}

func (f *facts) count(name string, n uint64) {
	if n > 0 {
		f.add(name, "%d", n)
	}
}

// line is a text as one bounded line.
func line(s string) string { return cut(s, maxLine) }

// brief is a text as a part of a line, where there are very many.
func brief(s string) string { return cut(s, maxBrief) }

func cut(s string, limit int) string {
	if len(s) <= limit {
		return report.Printable(s)
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return report.Printable(s[:limit]) + "…"
}

// tail is the end of a text.
func tail(s string) (text string, left int) {
	if len(s) <= maxText {
		return report.PrintableLines(s), 0
	}
	left = len(s) - maxText
	for left < len(s) && !utf8.RuneStart(s[left]) {
		left++
	}
	return report.PrintableLines(s[left:]), left
}

// textOf is the end of a text, of which so many bytes there were; 0: it is whole.
func textOf(title, body string, all uint64) Text {
	t := Text{Title: title}
	whole := max(all, uint64(len(body)))
	var left int
	if t.Body, left = tail(body); left > 0 || whole > uint64(len(body)) {
		t.Note = fmt.Sprintf("the last %d of %d bytes", len(body)-left, whole)
	}
	return t
}

// newTable makes a table of the first rows, which are made as they are needed.
func newTable(title string, n, left int, head []string, row func(int) []Cell) Table {
	t := Table{Title: title, Head: head}
	shown := min(n, maxRows)
	for i := range shown {
		t.Rows = append(t.Rows, row(i))
	}
	if all := n + left; all > shown {
		t.Note = fmt.Sprintf("the first %d of %d; the report has more", shown, all)
	}
	return t
}

// cells are cells without a class.
func cells(texts ...string) []Cell {
	all := make([]Cell, len(texts))
	for i, t := range texts {
		all[i] = Cell{Text: line(t)}
	}
	return all
}

// head is a run that is in no suite: good is one that exited with 0.
func (s *source) head() Head {
	h := Head{brief(s.Name), brief(s.Outcome), "bad", brief(s.Reason)}
	if s.Outcome == string(run.Exited) {
		h.Class = "good"
		if s.ExitCode != 0 {
			h.Class, h.Status = "bad", fmt.Sprintf("exited %d", s.ExitCode)
		}
	}
	return h
}

// section is all that a page shows of a run's report.
func (s *source) section() *Section {
	v := &Section{Head: s.head(), Ended: s.ended(), Ring: s.ring(), Environment: s.environment()}
	v.Why = line(s.Reason)
	if i := s.Invocation; i != nil && len(i.Args.All) > 0 && i.Args.More == 0 {
		v.Command = i.command(i.Args.All[1:]...)
	}
	v.Timeline = newTimeline(s)
	add := func(t Table) {
		if len(t.Rows) > 0 {
			v.Tables = append(v.Tables, t)
		}
	}
	tests, others := s.results()
	tests.Open = true
	add(tests)
	add(others)
	add(s.phases())
	add(s.events())
	add(s.stimuli())
	if s.Scheduler != nil {
		add(s.states())
	}
	v.Tables = append(v.Tables, s.looks()...)
	add(s.faults())
	v.Texts = s.texts()
	if s.CPUs != nil && s.CPUs.Error != "" {
		v.Notes = append(v.Notes, line("Not all is known of what the guest's CPUs were doing: "+s.CPUs.Error))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Omitted)) {
		if n := s.Omitted[name]; n != "0" && len(v.Notes) < 16 {
			v.Notes = append(v.Notes, line(fmt.Sprintf("Left out of the report: %s %s.", n,
				strings.ReplaceAll(name, "_", " "))))
		}
	}
	return v
}

func (s *source) ended() []Fact {
	var f facts
	f.add("exit code", "%d", s.ExitCode)
	if s.GuestExitCode != nil && *s.GuestExitCode != int64(s.ExitCode) {
		f.add("guest's exit code", "%d", *s.GuestExitCode)
	}
	if s.SchedulerExit != nil && s.SchedulerExit.Code != nil {
		f.add("scheduler's exit code", "%d", *s.SchedulerExit.Code)
	}
	f.add("took", "%s", seconds(s.Duration))
	if at, err := time.Parse(time.RFC3339Nano, s.StartedAt); err == nil {
		f.text("started (UTC)", at.UTC().Format(time.DateTime))
	}
	f.add("messages", "%d", s.Ring.Messages)
	f.add("drops", "%d", s.Ring.Drops)
	return f
}

func (s *source) ring() []Fact {
	var f facts
	r := s.Ring
	names := slices.SortedFunc(maps.Keys(r.ByType), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.ByType[b], r.ByType[a]), strings.Compare(a, b))
	})
	for _, name := range names[:min(len(names), 32)] {
		f.add(name, "%d", r.ByType[name])
	}
	f.add("all messages", "%d", r.Messages)
	f.add("bytes", "%d", r.Bytes)
	f.add("drops", "%d", r.Drops)
	f.add("wrong CRCs", "%d", r.CRCErrors)
	f.add("faults", "%d", len(r.Faults.All)+r.Faults.More)
	f.count("bytes given up", r.Lost)
	f.add("doorbell", "rang %d times, read %d times for it", s.Doorbell.Rings, s.Doorbell.Drains)
	return f
}

func (s *source) environment() []Fact {
	var f facts
	f.text("kernel", s.VM.Kernel)
	f.text("architecture", s.Arch)
	f.text("ran on", s.Accelerator)
	f.add("CPUs", "%d", s.VM.CPUs)
	t := s.VM.Topology
	if s.VM.CPUs > 1 {
		f.add("topology", "sockets=%d, dies=%d, cores=%d, threads=%d; %d last-level caches", t.Sockets, t.Dies, t.Cores,
			t.Threads, t.LLC.Count)
	}
	if t.NUMA != nil {
		f.add("NUMA nodes", "%d", t.NUMA.Nodes)
	}
	if n := len(s.VM.Pinning.All); n > 0 {
		f.add("pinned to", "%v", s.VM.Pinning.All[:min(n, 64)])
	}
	f.add("memory", "%s", size(s.VM.Memory))
	f.add("ring", "%s at %s", size(s.VM.ShmSize), s.VM.ShmBase)
	if h := s.Host; h != nil {
		f.text("host", h.Name)
		f.text("host's system", h.OS)
		f.text("host's kernel", h.Kernel)
		f.text("host's CPU", h.CPU)
		f.count("host's CPUs", uint64(max(0, h.CPUs)))
		if h.Memory > 0 {
			f.add("host's memory", "%s", size(h.Memory))
		}
	}
	f.text("ktstr-vmm", s.Version)
	f.text("id", s.ID)
	return f
}

// size is a number of bytes as people say it.
func size(n uint64) string {
	for _, unit := range []struct {
		name string
		size uint64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= unit.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(unit.size)), ".0") + " " + unit.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// test is a TEST payload that looks like the result of a test.
type test struct {
	Name    string `json:"name"`
	Passed  *bool  `json:"passed"`
	Message string `json:"message"`
}

func asTest(payload json.RawMessage) (t test, ok bool) {
	return t, json.Unmarshal(payload, &t) == nil && t.Passed != nil
}

// resultTime is when a result came, or "".
func (s *source) resultTime(i int) string {
	if i >= len(s.ResultTimes.All) {
		return ""
	}
	return seconds(s.ResultTimes.All[i])
}

// results are the tests, those that failed first, and the results that look like no test.
func (s *source) results() (tests, others Table) {
	type found struct {
		test
		at string
	}
	var failed, passed []found
	var rest []int
	for i, payload := range s.Results.All {
		t, ok := asTest(payload)
		switch {
		case !ok:
			rest = append(rest, i)
		case *t.Passed:
			passed = append(passed, found{t, s.resultTime(i)})
		default:
			failed = append(failed, found{t, s.resultTime(i)})
		}
	}
	all := slices.Concat(failed, passed)
	title := fmt.Sprintf("Test results: %d passed, %d failed", len(passed), len(failed))
	if s.Results.More > 0 {
		title += fmt.Sprintf(" of the first %d", len(s.Results.All))
	}
	tests = newTable(title, len(all), s.Results.More, []string{"", "test", "time", "message"}, func(i int) []Cell {
		row := cells("failed", all[i].Name, all[i].at, all[i].Message)
		row[0].Class = "bad"
		if *all[i].Passed {
			row[0] = Cell{"passed", "good"}
		}
		return row
	})
	others = newTable("Other results", len(rest), 0, []string{"time", "TEST"}, func(i int) []Cell {
		var b bytes.Buffer
		if json.Compact(&b, s.Results.All[rest[i]]) != nil {
			b.Write(s.Results.All[rest[i]])
		}
		return cells(s.resultTime(rest[i]), b.String())
	})
	return tests, others
}

func (s *source) phases() Table {
	return newTable("Phases", len(s.Phases.All), s.Phases.More, []string{"from", "phase"}, func(i int) []Cell {
		return cells(seconds(s.Phases.All[i].At), s.Phases.All[i].Name)
	})
}

func (s *source) events() Table {
	return newTable("Events", len(s.Events.All), s.Events.More, []string{"time", "event", ""}, func(i int) []Cell {
		e := s.Events.All[i]
		row := cells(seconds(e.At), e.Kind, e.Text)
		row[1].Class = eventClass(e.Kind)
		return row
	})
}

func (s *source) stimuli() Table {
	head := []string{"time", "step", "operations", "cgroups", "workers", "iterations"}
	return newTable("Stimuli", len(s.Stimuli.All), s.Stimuli.More, head, func(i int) []Cell {
		x := s.Stimuli.All[i]
		at := fmt.Sprintf("%d ms of its scenario", x.ElapsedMS)
		if x.At != nil {
			at = seconds(*x.At)
		}
		return cells(at, fmt.Sprint(x.StepIndex), fmt.Sprintf("%d (0x%x)", x.OpCount, x.OpKinds), fmt.Sprint(x.CgroupCount),
			fmt.Sprint(x.WorkerCount), fmt.Sprint(x.TotalIterations))
	})
}

func (s *source) states() Table {
	all := s.Scheduler.States
	head := []string{"time", "state", "scheduler", "reason"}
	return newTable("States of sched_ext", len(all.All), all.More, head, func(i int) []Cell {
		x := all.All[i]
		return cells(seconds(x.At), x.State, x.Ops, x.Reason)
	})
}

// looks are a table for each look at the guest's CPUs.
func (s *source) looks() (tables []Table) {
	if s.CPUs == nil {
		return nil
	}
	for _, l := range s.CPUs.Looks.All[:min(len(s.CPUs.Looks.All), maxLooks)] {
		title := line(fmt.Sprintf("What the guest's CPUs were doing: %s, after %s", strings.ReplaceAll(l.When, "_", " "),
			seconds(l.At)))
		head := []string{"CPU", "task", "policy", "runnable", "clock", "sched_ext"}
		tables = append(tables, newTable(title, len(l.CPUs.All), l.CPUs.More, head, func(i int) []Cell {
			return l.CPUs.All[i].row()
		}))
	}
	return tables
}

func (c cpu) row() []Cell {
	task, scx := fmt.Sprintf("%s, process %d", c.Comm, c.PID), ""
	switch {
	case !c.Online:
		task = "offline"
	case c.Idle:
		task = "idle"
	}
	if c.SCX != nil {
		scx = fmt.Sprintf("%d runnable, flags %s", c.SCX.NrRunning, c.SCX.Flags)
	}
	return cells(fmt.Sprint(c.Index), task, c.Policy, fmt.Sprint(c.NrRunning), seconds(c.Clock), scx)
}

func (s *source) faults() Table {
	all := s.Ring.Faults
	return newTable("Faults of the ring", len(all.All), all.More, []string{"kind", "detail"}, func(i int) []Cell {
		return cells(all.All[i].Kind, all.All[i].Detail)
	})
}

func (s *source) texts() (texts []Text) {
	add := func(t Text, open bool) {
		if strings.TrimSpace(t.Body) != "" {
			t.Open = open
			texts = append(texts, t)
		}
	}
	if s.Crash != nil {
		add(textOf("Crash", s.Crash.Message, 0), true)
	}
	add(s.console(), true)
	if o := s.Output; o != nil {
		add(textOf("stdout", o.Stdout, o.StdoutBytes), true)
		add(textOf("stderr", o.Stderr, o.StderrBytes), true)
	}
	if x := s.Scheduler; x != nil {
		add(textOf("Scheduler's output", x.OutputTail, 0), true)
		add(textOf("sched_ext's dump", x.Dump, 0), false)
	}
	return texts
}

// console is the console with the times that are known of its lines in front of them.
func (s *source) console() Text {
	t := textOf("Console", s.ConsoleTail, 0)
	if len(s.ConsoleTimes.All) == 0 || t.Body == "" {
		return t
	}
	left := max(0, len(s.ConsoleTail)-maxText)
	first := strings.Count(s.ConsoleTail[:left], "\n")
	times := map[int]float64{}
	for _, x := range s.ConsoleTimes.All {
		times[x.Line-first] = x.At
	}
	var b strings.Builder
	for i, text := range strings.Split(strings.TrimSuffix(t.Body, "\n"), "\n") {
		at := ""
		if when, ok := times[i]; ok {
			at = seconds(when)
		}
		fmt.Fprintf(&b, "%11s  %s\n", at, text)
	}
	t.Body = b.String()
	return t
}

// ofSuite adds what a suite knows of a run. Its own files are no part of the command to run it again.
func (v *Section) ofSuite(x *suite.Result, i *invocation) {
	if len(x.Args) > 0 {
		v.Command = i.command(x.Args...)
	}
	if x.Expect != nil {
		v.Ended = append(v.Ended, Fact{"expected", line(x.Expect.String())})
	}
	if len(x.Labels) > 0 {
		v.Ended = append(v.Ended, Fact{"labels", line(strings.Join(x.Labels, ", "))})
	}
	if x.Folder != "" {
		v.Ended = append(v.Ended, Fact{"files", line(x.Folder)})
	}
	attempts := newTable("Attempts before", len(x.Earlier), 0, []string{"time", "outcome", "reason"}, func(i int) []Cell {
		return cells(seconds(x.Earlier[i].Duration), string(x.Earlier[i].Outcome), x.Earlier[i].Reason)
	})
	if attempts.Open = true; len(attempts.Rows) > 0 {
		v.Tables = append([]Table{attempts}, v.Tables...)
	}
	if len(v.Texts) == 0 && len(x.Tail) > 0 {
		v.Texts = append(v.Texts, textOf("The last lines", strings.Join(x.Tail, "\n")+"\n", 0))
	}
}

// weight is about how many bytes of a page a section takes.
func (v *Section) weight() (n int) {
	for _, t := range v.Texts {
		n += len(t.Body)
	}
	for _, t := range v.Tables {
		for _, row := range t.Rows {
			for _, c := range row {
				n += len(c.Text) + 16
			}
		}
	}
	return n + v.Timeline.weight() + 8<<10
}
