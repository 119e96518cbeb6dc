// Package tally sums the metrics of runs: counters and histograms, classic and native. Gauges are of one run, and left
// out. A sum has a run's suite, kernel, architecture and accelerator as labels, of which there are so many and no more.
package tally

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// DefaultLimit is how many different Labels a Tally has by default.
const DefaultLimit = 200

// Other is what labels are that came after the limit.
const Other = "other"

// Lost is the outcome of a run whose process ended without saying how the run went.
const Lost = "lost"

// Limits on what is added. What comes from other processes may be anything.
const (
	maxLabel   = 128 // bytes
	maxSeries  = 64  // of a family, for the same Labels
	maxBuckets = 64  // of a classic histogram
	// maxRun is how much one run can count: so many can be added that no sum gets out of its type's range.
	maxRun = 1 << 40
)

// ErrInvalid is what is no sum of runs' metrics.
var ErrInvalid = errors.New("no metrics of runs")

// Labels say which runs a sum is of.
type Labels struct{ Suite, Kernel, Arch, Accelerator string }

// labelNames are the labels that Labels make.
var labelNames = [...]string{"suite", "kernel", "arch", "accelerator"}

// Pairs returns the labels as metrics have them.
func (l Labels) Pairs() []*dto.LabelPair {
	var pairs []*dto.LabelPair
	for i, v := range []string{l.Suite, l.Kernel, l.Arch, l.Accelerator} {
		pairs = append(pairs, &dto.LabelPair{Name: proto.String(labelNames[i]), Value: proto.String(text(v))})
	}
	return pairs
}

// Clean returns the labels as a sum has them: in UTF-8, and of at most 128 bytes each.
func (l Labels) Clean() Labels {
	return Labels{text(l.Suite), text(l.Kernel), text(l.Arch), text(l.Accelerator)}
}

// text makes any string a label's value.
func text(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) > maxLabel {
		s = strings.ToValidUTF8(s[:maxLabel], "")
	}
	return s
}

// Tally is a sum. Its methods can be called at the same time.
type Tally struct {
	mu       sync.Mutex
	limit    int
	groups   map[Labels]bool
	families map[string]*family
}

type family struct {
	spec
	series map[string]*dto.Metric // by their labels
	count  map[Labels]int
}

// New returns an empty sum with at most so many different Labels; 0: DefaultLimit.
func New(limit int) *Tally {
	if limit <= 0 {
		limit = DefaultLimit
	}
	return &Tally{limit: limit, groups: map[Labels]bool{}, families: map[string]*family{}}
}

// Add adds what a run's registry has gathered. Families that it does not know, and gauges, are left out; an error is an
// ErrInvalid, and nothing was added then.
func (t *Tally) Add(l Labels, families []*dto.MetricFamily) error {
	var known []*dto.MetricFamily
	for _, f := range families {
		s, ok := specs[f.GetName()]
		if !ok || f.GetType() == dto.MetricType_GAUGE {
			continue
		}
		labelled := &dto.MetricFamily{Name: f.Name, Type: s.kind.Enum()}
		for _, m := range f.GetMetric() {
			if h := m.GetHistogram(); m.GetCounter().GetValue() > maxRun || h.GetSampleCount() > maxRun ||
				math.Abs(h.GetSampleSum()) > maxRun {
				return fmt.Errorf("%w: %s counts more than %d", ErrInvalid, f.GetName(), uint64(maxRun))
			}
			labelled.Metric = append(labelled.Metric, &dto.Metric{Counter: m.GetCounter(), Histogram: m.GetHistogram(),
				Label: append(l.Pairs(), m.GetLabel()...)})
		}
		if f.GetType() != s.kind {
			return fmt.Errorf("%w: %s is a %v", ErrInvalid, f.GetName(), f.GetType())
		}
		known = append(known, labelled)
	}
	return t.Merge(known)
}

// End adds that a run has ended, and how.
func (t *Tally) End(l Labels, outcome string, duration time.Duration) error {
	labels := append(l.Pairs(), &dto.LabelPair{Name: proto.String("outcome"), Value: proto.String(text(outcome))})
	return t.Merge([]*dto.MetricFamily{
		{Name: proto.String(runsTotal), Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{
			{Label: labels, Counter: &dto.Counter{Value: proto.Float64(1)}}}},
		{Name: proto.String(runsDuration), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{
			{Label: labels, Histogram: observed(duration)}}},
	})
}

// Merge adds another sum. An error is an ErrInvalid, and nothing was added then.
func (t *Tally) Merge(families []*dto.MetricFamily) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	type addition struct {
		spec
		labels map[string]string
		metric *dto.Metric
	}
	var all []addition
	for _, f := range families {
		s, ok := specs[f.GetName()]
		if !ok || f.GetType() != s.kind {
			return fmt.Errorf("%w: %q, a %v", ErrInvalid, text(f.GetName()), f.GetType())
		}
		for _, m := range f.GetMetric() {
			labels, err := s.check(m)
			if err != nil {
				return fmt.Errorf("%w: %s: %w", ErrInvalid, s.name, err)
			}
			all = append(all, addition{s, labels, m})
		}
	}
	for _, a := range all {
		t.add(a.spec, a.labels, a.metric)
	}
	return nil
}

// group returns the labels that a sum with a limit has for these.
func (t *Tally) group(l Labels) Labels {
	if !t.groups[l] {
		if len(t.groups) >= t.limit {
			l = Labels{Other, Other, Other, Other}
		}
		t.groups[l] = true
	}
	return l
}

// Group returns the labels under which l is summed: l, or Other for each once the limit is reached.
func (t *Tally) Group(l Labels) Labels {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.group(l.Clean())
}

func (t *Tally) add(s spec, labels map[string]string, m *dto.Metric) {
	f := t.families[s.name]
	if f == nil {
		f = &family{spec: s, series: map[string]*dto.Metric{}, count: map[Labels]int{}}
		t.families[s.name] = f
	}
	g := t.group(Labels{labels["suite"], labels["kernel"], labels["arch"], labels["accelerator"]})
	values := []string{g.Suite, g.Kernel, g.Arch, g.Accelerator}
	for _, name := range s.labels {
		values = append(values, labels[name])
	}
	sum := f.series[key(values)]
	if sum == nil && f.count[g] >= maxSeries {
		for i := range s.labels {
			values[len(labelNames)+i] = Other
		}
		sum = f.series[key(values)]
	}
	if sum == nil {
		sum = s.metric(values)
		f.series[key(values)] = sum
		f.count[g]++
	}
	if s.kind == dto.MetricType_COUNTER {
		sum.Counter.Value = proto.Float64(sum.Counter.GetValue() + m.GetCounter().GetValue())
	} else {
		sum.Histogram = addHistograms(sum.Histogram, m.GetHistogram())
	}
}

func key(values []string) string { return strings.Join(values, "\xff") } // no byte of UTF-8

// metric makes an empty sum. Label names are in the order that an exposition has them.
func (s spec) metric(values []string) *dto.Metric {
	m := &dto.Metric{}
	for i, name := range append(slices.Clone(labelNames[:]), s.labels...) {
		m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(name), Value: proto.String(values[i])})
	}
	slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
	if s.kind == dto.MetricType_COUNTER {
		m.Counter = &dto.Counter{Value: proto.Float64(0)}
	}
	return m
}

// Groups returns all labels that the sum has had.
func (t *Tally) Groups() []Labels {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.groups))
}

// Gather implements prometheus.Gatherer: the sum, which the caller may change.
func (t *Tally) Gather() ([]*dto.MetricFamily, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var families []*dto.MetricFamily
	for _, name := range slices.Sorted(maps.Keys(t.families)) {
		f := t.families[name]
		out := &dto.MetricFamily{Name: proto.String(f.name), Help: proto.String(f.help), Type: f.kind.Enum()}
		for _, k := range slices.Sorted(maps.Keys(f.series)) {
			out.Metric = append(out.Metric, proto.CloneOf(f.series[k]))
		}
		families = append(families, out)
	}
	return families, nil
}

var _ prometheus.Gatherer = (*Tally)(nil)

// check judges a metric of a sum, and returns its labels.
func (s spec) check(m *dto.Metric) (map[string]string, error) {
	labels := map[string]string{}
	for _, p := range m.GetLabel() {
		name, value := p.GetName(), p.GetValue()
		if !slices.Contains(labelNames[:], name) && !slices.Contains(s.labels, name) {
			return nil, fmt.Errorf("the label %q", text(name))
		}
		if _, twice := labels[name]; twice || value != text(value) {
			return nil, fmt.Errorf("the value %q of the label %s", text(value), name)
		}
		labels[name] = value
	}
	if s.kind == dto.MetricType_HISTOGRAM {
		return labels, checkHistogram(m.GetHistogram())
	}
	if v := m.GetCounter().GetValue(); m.Counter == nil || !(v >= 0) || math.IsInf(v, 0) {
		return nil, fmt.Errorf("a counter of %v", v)
	}
	return labels, nil
}
