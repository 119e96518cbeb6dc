package exporter

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

// newcomer is how old a series can be that a scraper sees from 0 which comes for the first time: it may be the one that
// was started together with the exporter. What is older is history to it.
const newcomer = 5 * time.Minute

// forgotten is how long a scraper has to stay away before another one can have its place.
const forgotten = 30 * 24 * time.Hour

// unsureAnswers is how many answers a scraper with a deadline may not have got: of a series that was in one more,
// the 0 is taken for known.
const unsureAnswers = 2

// timeoutHeader is sent by Prometheus, which gives an answer up that comes later.
const timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// connection says over which connection a scraper with a deadline asks; "" if its requests share one whatever
// becomes of them, as those of HTTP/2 do. One that gives up closes it, so a second request over the same one says that
// the answer to the first has arrived. prompt is for scrapers without a deadline, which have what was sent.
func connection(r *http.Request) (conn string, prompt bool) {
	if r.Header.Get(timeoutHeader) == "" {
		return "", true
	}
	if r.ProtoMajor != 1 {
		return "", false
	}
	return r.RemoteAddr, false
}

// whoScrapes tells scrapers apart: by address, by program without its version, and by name where they have one.
func whoScrapes(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	program, _, _ := strings.Cut(r.UserAgent(), "/")
	name := r.URL.Query().Get("scraper")
	return fmt.Sprintf("%s %.64q %.64q", host, program, name)
}

// show returns the sums for a scraper. A series that is new to it is 0, so that the rise from there is not lost on it.
// When they were sent, sent is to be called.
func (s *store) show(r *http.Request) (families []*dto.MetricFamily, sent func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := whoScrapes(r)
	conn, prompt := connection(r)
	sum := tally.New(1 << 30) // who is under which labels is decided already
	ended, err := s.totals.Gather()
	if err == nil {
		err = sum.Merge(ended)
	}
	for _, run := range s.live {
		err = errors.Join(err, addRun(sum, run))
	}
	if families, err = sum.Gather(); err != nil {
		return nil, nil, err
	}
	s.bear(families)
	x, youngest := s.scraper(who), uint64(len(s.births))
	s.arrived(x, conn)
	known := x.Seen
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if s.births[seriesOf(f, m)] > known {
				zero(m)
			}
		}
	}
	return append(families, s.gauges()...), func() { s.sent(who, youngest, conn, prompt) }, nil
}

// bear numbers the series that are new, in the order of their births.
func (s *store) bear(families []*dto.MetricFamily) {
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if series := seriesOf(f, m); s.births[series] == 0 {
				s.births[series] = uint64(len(s.births) + 1)
				s.recent[series] = time.Now()
				s.changes++
			}
		}
	}
}

func seriesOf(f *dto.MetricFamily, m *dto.Metric) string {
	var b strings.Builder
	b.WriteString(f.GetName())
	for _, p := range m.GetLabel() {
		fmt.Fprintf(&b, " %s=%q", p.GetName(), p.GetValue())
	}
	return b.String()
}

// scraper returns what is known of a scraper. One for which there is no place is shown all values: to show 0 to one
// that has seen more would count twice.
func (s *store) scraper(who string) *scraper {
	if x := s.scrapers[who]; x != nil {
		x.Last = time.Now()
		return x
	}
	maps.DeleteFunc(s.scrapers, func(_ string, x *scraper) bool {
		return len(s.scrapers) >= maxScrapers && time.Since(x.Last) > forgotten
	})
	x := &scraper{Seen: uint64(len(s.births)), Last: time.Now()}
	if len(s.scrapers) >= maxScrapers {
		return x
	}
	for series, at := range s.recent {
		if time.Since(at) < newcomer {
			x.Seen = min(x.Seen, s.births[series]-1)
		} else {
			delete(s.recent, series)
		}
	}
	s.scrapers[who] = x
	s.changes++
	return x
}

// arrived judges what a scraper has got, now that it asks again.
func (s *store) arrived(x *scraper, conn string) {
	n := len(x.unsure)
	switch {
	case n > 0 && conn != "" && conn == x.conn:
		s.saw(x, x.unsure[n-1])
		x.unsure = nil
	case n > unsureAnswers:
		s.saw(x, x.unsure[n-1-unsureAnswers])
		x.unsure = x.unsure[n-unsureAnswers:]
	}
}

// sent notes that a scraper was sent all series up to the youngest.
func (s *store) sent(who string, youngest uint64, conn string, prompt bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.scrapers[who]
	switch {
	case x == nil || x.Seen >= youngest:
	case prompt:
		s.saw(x, youngest)
	default:
		x.unsure, x.conn = append(x.unsure, youngest), conn
	}
}

func (s *store) saw(x *scraper, youngest uint64) {
	if x.Seen < youngest {
		x.Seen = youngest
		s.changes++
	}
}

// zero makes a counter or a histogram as it is before anything has happened.
func zero(m *dto.Metric) {
	if m.Counter != nil {
		m.Counter.Value = proto.Float64(0)
	}
	h := m.Histogram
	if h == nil {
		return
	}
	h.SampleCount, h.SampleSum = proto.Uint64(0), proto.Float64(0)
	for _, b := range h.Bucket {
		b.CumulativeCount = proto.Uint64(0)
	}
	h.PositiveSpan, h.PositiveDelta, h.NegativeSpan, h.NegativeDelta = nil, nil, nil, nil
	if h.Schema != nil {
		h.ZeroCount = proto.Uint64(0)
		h.PositiveSpan = []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(0)}} // says that it is native
	}
}

// gauges are about the live runs.
func (s *store) gauges() []*dto.MetricFamily {
	type live struct {
		running, oldest, fill float64
	}
	groups := map[tally.Labels]*live{}
	for _, l := range s.totals.Groups() {
		groups[l] = &live{}
	}
	for _, run := range s.live {
		g := groups[run.Labels] // Group has made it
		if g == nil {
			continue
		}
		started := float64(run.Started.UnixMilli()) / 1e3
		if g.running == 0 || started < g.oldest {
			g.oldest = started
		}
		g.running++
		g.fill = max(g.fill, run.fill)
	}
	running := gaugeFamily("runs_running", "Runs that go on.")
	oldest := gaugeFamily("runs_oldest_start_timestamp_seconds", "When the run was started that goes on for the longest.")
	fill := gaugeFamily("ring_fill_ratio", "How full the fullest ring of a run that goes on was at the last drain.")
	for l, g := range groups {
		add := func(f *dto.MetricFamily, v float64) {
			pairs := l.Pairs()
			slices.SortFunc(pairs, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
			f.Metric = append(f.Metric, &dto.Metric{Label: pairs, Gauge: &dto.Gauge{Value: proto.Float64(v)}})
		}
		add(running, g.running)
		if g.running > 0 {
			add(oldest, g.oldest)
			add(fill, g.fill)
		}
	}
	return []*dto.MetricFamily{running, oldest, fill}
}

func gaugeFamily(name, help string) *dto.MetricFamily {
	return &dto.MetricFamily{Name: proto.String(prometheus.BuildFQName(monitor.Namespace, "", name)),
		Help: proto.String(help), Type: dto.MetricType_GAUGE.Enum()}
}
