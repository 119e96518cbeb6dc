package page

import (
	"fmt"
	"math"
	"slices"
	"strconv"
)

// A timeline has so many columns: what falls into one is one mark.
const columns = 400

// maxSpans bounds the bars of a lane.
const maxSpans = 200

// Timeline shows when things happened.
type Timeline struct {
	Seconds float64
	Lanes   []Lane
	Ticks   []Tick
	Height  int // px
	AxisY   int
	TextY   int // of the axis's times
}

// Lane is a line of a timeline.
type Lane struct {
	Name  string
	Y     int // of its name
	BarY  int
	TextY int // of names in bars
	Items []Item
}

// Item is a bar, or a mark of a moment if it has no width. Both are percentages of the timeline.
type Item struct {
	X, W  string
	Class string
	Title string
	Label string // where there is room for it
}

// Tick is a time on the axis.
type Tick struct {
	X, Text, Anchor string
}

// Places of a lane's parts in it, in px.
const (
	laneHeight = 42
	laneName   = 13
	laneBar    = 19
	laneText   = 32
)

// moment is something at a time.
type moment struct {
	at    float64
	class string
	title string
}

// newTimeline is a run's timeline; nil, where there is nothing to show.
func newTimeline(s *source) *Timeline {
	t := &Timeline{Seconds: s.Duration}
	for _, e := range s.Events.All {
		if believable(e.At) {
			t.Seconds = max(t.Seconds, e.At)
		}
	}
	if !believable(t.Seconds) || t.Seconds <= 0 {
		return nil
	}
	t.spans("Phases", phases(s))
	t.spans("Scenarios", scenarios(s))
	t.spans("Scheduler", states(s))
	t.moments("Stimuli", stimuli(s))
	t.moments("Results", results(s))
	t.moments("Events", events(s))
	t.moments("Looks at CPUs", looks(s))
	if len(t.Lanes) == 0 {
		return nil
	}
	t.AxisY = len(t.Lanes)*laneHeight + 4
	t.TextY, t.Height = t.AxisY+16, t.AxisY+22
	t.axis()
	return t
}

// span is something that begins, and ends when the next one does, or at an end of its own.
type span struct {
	from, to float64 // to < 0: when the next one begins
	class    string
	name     string
	more     string // of the name, where a bar has no room
}

func phases(s *source) (all []span) {
	for i, p := range s.Phases.All {
		all = append(all, span{p.At, -1, fmt.Sprintf("p%d", i%5), p.Name, ""})
	}
	return all
}

// scenarios are from SCST to SCEN.
func scenarios(s *source) (all []span) {
	begun := false
	for _, e := range s.Events.All {
		switch {
		case e.Kind == "SCST":
			if begun {
				all[len(all)-1].to = e.At
			}
			name := e.Text
			if name == "" {
				name = fmt.Sprintf("scenario %d", len(all)+1)
			}
			all, begun = append(all, span{e.At, math.MaxInt32, fmt.Sprintf("p%d", len(all)%5), name, ""}), true
		case e.Kind == "SCEN" && begun:
			all[len(all)-1].to, begun = e.At, false
		}
	}
	return all
}

// unregistered is the kernel's reason where a scheduler has ended by itself.
const unregistered = "unregistered from user space"

func states(s *source) (all []span) {
	if s.Scheduler == nil {
		return nil
	}
	for _, x := range s.Scheduler.States.All {
		class := "p1"
		switch {
		case x.State == "enabled":
			class = "good"
		case x.Reason != "" && x.Reason != unregistered:
			class = "bad"
		}
		more := ""
		if x.Ops != "" {
			more += " " + x.Ops
		}
		if x.Reason != "" {
			more += ": " + x.Reason
		}
		all = append(all, span{x.At, -1, class, x.State, more})
	}
	return all
}

func stimuli(s *source) (all []moment) {
	for _, x := range s.Stimuli.All {
		if x.At != nil {
			all = append(all, moment{*x.At, "p0", fmt.Sprintf("STIM step %d, %d iterations", x.StepIndex, x.TotalIterations)})
		}
	}
	return all
}

func results(s *source) (all []moment) {
	for i, payload := range s.Results.All[:min(len(s.Results.All), len(s.ResultTimes.All))] {
		m := moment{s.ResultTimes.All[i], "p1", "TEST"}
		if t, ok := asTest(payload); ok {
			m.class, m.title = "bad", "failed: "+t.Name
			if *t.Passed {
				m.class, m.title = "good", "passed: "+t.Name
			}
		}
		all = append(all, m)
	}
	return all
}

// eventClass is bad for what ends a run badly, or loses something.
func eventClass(kind string) string {
	switch kind {
	case "CRSH", "SCDX", "fault", "drops":
		return "bad"
	case "dump_request", "stall_request", "signal", "stop", "deadline":
		return "warn"
	}
	return ""
}

// events are those that have no lane of their own. An older report has no events, but the requests of dumps.
func events(s *source) (all []moment) {
	for _, e := range s.Events.All {
		if !slices.Contains([]string{"SCST", "SCEN", "SXST"}, e.Kind) {
			all = append(all, moment{e.At, eventClass(e.Kind), e.Kind + " " + e.Text})
		}
	}
	if len(s.Events.All) == 0 {
		for _, d := range s.DumpRequests.All {
			all = append(all, moment{d.At, "warn", "dump_request " + d.Why})
		}
	}
	return all
}

func looks(s *source) (all []moment) {
	if s.CPUs == nil {
		return nil
	}
	for _, l := range s.CPUs.Looks.All {
		all = append(all, moment{l.At, "p1", l.When})
	}
	return all
}

// percent is a time's place.
func (t *Timeline) percent(at float64) float64 { return max(0, min(100, at/t.Seconds*100)) }

func format(percent float64) string { return strconv.FormatFloat(percent, 'f', 2, 64) + "%" }

// lane adds a lane.
func (t *Timeline) lane(name string, items []Item) {
	if len(items) == 0 {
		return
	}
	y := len(t.Lanes) * laneHeight
	t.Lanes = append(t.Lanes, Lane{name, y + laneName, y + laneBar, y + laneText, items})
}

func (t *Timeline) spans(name string, all []span) {
	var items []Item
	for i, s := range all[:min(len(all), maxSpans)] {
		if !believable(s.from) {
			continue
		}
		to := s.to
		if to < 0 {
			if to = t.Seconds; i+1 < len(all) {
				to = all[i+1].from
			}
		}
		to = min(to, t.Seconds)
		if !believable(to) || to < s.from {
			to = s.from
		}
		x := t.percent(s.from)
		item := Item{X: format(x), W: format(max(0.3, t.percent(to)-x)), Class: s.class,
			Title: line(fmt.Sprintf("%s%s, %s to %s", s.name, s.more, seconds(s.from), seconds(to)))}
		if label := line(s.name); t.percent(to)-x > 1.8*float64(len(label))+1.5 { // in 400 px, too
			item.Label = label
		}
		items = append(items, item)
	}
	t.lane(name, items)
}

// moments adds a mark for each column in which there is something: the worst of it, and how much more there is.
func (t *Timeline) moments(name string, all []moment) {
	type mark struct {
		moment
		n int
	}
	marks := map[int]mark{}
	order := []string{"", "p0", "p1", "good", "warn", "bad"}
	for _, m := range all {
		if !believable(m.at) {
			continue
		}
		column := int(t.percent(m.at) / 100 * (columns - 1))
		x, ok := marks[column]
		if !ok || slices.Index(order, m.class) > slices.Index(order, x.class) {
			x.moment = m
		}
		x.n++
		marks[column] = x
	}
	var items []Item
	for column := range columns {
		x, ok := marks[column]
		if !ok {
			continue
		}
		title := line(fmt.Sprintf("%s: %s", seconds(x.at), x.title))
		if x.n > 1 {
			title += fmt.Sprintf(" (and %d more)", x.n-1)
		}
		items = append(items, Item{X: format(99.5 * float64(column) / (columns - 1)), Class: x.class, Title: title})
	}
	t.lane(name, items)
}

// maxTicks is how many times an axis has beside 0.
const maxTicks = 5

// axis has round times.
func (t *Timeline) axis() {
	power := math.Pow(10, math.Floor(math.Log10(t.Seconds)))
	step := 2 * power
	for _, part := range []float64{.2, .25, .5, 1} {
		if t.Seconds <= maxTicks*part*power {
			step = part * power
			break
		}
	}
	for i := 0; i <= maxTicks && float64(i)*step <= t.Seconds; i++ {
		at := float64(i) * step
		tick := Tick{format(t.percent(at)), strconv.FormatFloat(at, 'g', 10, 64) + " s", "middle"}
		switch {
		case i == 0:
			tick.Anchor = "start"
		case t.percent(at) > 94:
			tick.Anchor = "end"
		}
		t.Ticks = append(t.Ticks, tick)
	}
}

func (t *Timeline) weight() (n int) {
	if t == nil {
		return 0
	}
	for _, l := range t.Lanes {
		for _, x := range l.Items {
			n += len(x.Title) + 100
		}
	}
	return n
}
