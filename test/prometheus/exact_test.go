package prometheus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// query asks for a vector, at a time or now.
func (l *lab) query(prom promv1.API, query string, at time.Time) (model.Vector, error) {
	if at.IsZero() {
		at = time.Now()
	}
	value, _, _, err := prom.Query(context.Background(), query, at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	vector, ok := value.(model.Vector)
	if !ok {
		return nil, fmt.Errorf("%s is a %s", query, value.Type())
	}
	return vector, nil
}

// values are a vector's, by a label of its, without those that are 0.
func values(v model.Vector, label string) map[string]float64 {
	all := map[string]float64{}
	for _, s := range v {
		if s.Value != 0 {
			all[string(s.Metric[model.LabelName(label)])] += float64(s.Value)
		}
	}
	return all
}

// expect compares what Prometheus says with sums. In the query, %s is for a counter, by one way, without the suite of
// the runs that have no report.
func (l *lab) expect(prom promv1.API, job, query string, at time.Time, want sums) error {
	for counter, parts := range want.counters() {
		name, label := counter[0], counter[1]
		q := fmt.Sprintf("sum by (%s) (%s)", label,
			strings.ReplaceAll(query, "%s", fmt.Sprintf(`%s{job="%s", suite!="lost"}`, name, job)))
		vector, err := l.query(prom, q, at)
		if err != nil {
			return err
		}
		expected := map[string]float64{}
		for k, v := range parts {
			if v != 0 {
				expected[k] = v
			}
		}
		if d := cmp.Diff(expected, values(vector, label)); d != "" {
			return fmt.Errorf("%s is not what the reports say:\n%s", q, d)
		}
	}
	return nil
}

// final waits until the values themselves are the sums, by one way.
func (l *lab) final(prom promv1.API, job string, want sums) {
	l.t.Helper()
	l.poll(func() error {
		if err := l.expect(prom, job, "%s", time.Time{}, want); err != nil {
			return err
		}
		return l.durations(prom, job, want)
	})
}

// durations compares the number and the sum of the runs' durations, of which the last digit depends on the order in
// which they are added.
func (l *lab) durations(prom promv1.API, job string, want sums) error {
	selector := fmt.Sprintf(`{job="%s", suite!="lost"}`, job)
	count := "sum(ktstr_vmm_runs_duration_seconds_count" + selector + ")"
	seconds := "sum(ktstr_vmm_runs_duration_seconds_sum" + selector + ")"
	if l.native && job != byTextfile { // which is a text, and has classic ones alone
		count = "histogram_count(sum(ktstr_vmm_runs_duration_seconds" + selector + "))"
		seconds = "histogram_sum(sum(ktstr_vmm_runs_duration_seconds" + selector + "))"
	}
	for query, expected := range map[string]float64{count: want.runs, seconds: want.seconds} {
		v, err := l.query(prom, query, time.Time{})
		if err != nil {
			return err
		}
		if len(v) != 1 || math.Abs(float64(v[0].Value)-expected) > 1e-6 {
			return fmt.Errorf("%s is %v, not %v", query, v, expected)
		}
	}
	return nil
}

// rises checks how much the exporter's counters have risen.
//
// What the samples say is exact: each series begins with 0, none falls, and so the rise over them is the value. It is
// exact at any time; where a window begins later, it is the rise from its first scrape to its last one.
//
// increase() takes that and extrapolates: back to the beginning of its window, but not to less than 0, where the series
// begins; and on to its end. So it is exact at the time of a scrape, over a window that has the whole series.
func (l *lab) rises(prom promv1.API, want sums) {
	l.t.Helper()
	all := fmt.Sprintf(`{__name__=~"ktstr_vmm_.*_total", job="%s", suite!=""}`, byExporter)
	value, _, _, err := prom.Query(context.Background(), all+"[1h]", time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	matrix, ok := value.(model.Matrix)
	if !ok || len(matrix) == 0 {
		l.t.Fatalf("%s: %v", all, value)
	}
	for _, series := range matrix {
		if v := series.Values[0].Value; v != 0 {
			l.t.Errorf("%v begins with %v", series.Metric, v)
		}
		for i, v := range series.Values[1:] {
			if v.Value < series.Values[i].Value {
				l.t.Errorf("%v falls from %v to %v", series.Metric, series.Values[i].Value, v.Value)
			}
		}
	}
	if err := l.expect(prom, byExporter, "max_over_time(%s[1h]) - min_over_time(%s[1h])", time.Time{}, want); err != nil {
		l.t.Error(err)
	}
	scraped, err := l.query(prom, fmt.Sprintf(`max(timestamp(ktstr_vmm_runs_total{job="%s"}))`, byExporter), time.Time{})
	if err != nil || len(scraped) != 1 {
		l.t.Fatal(scraped, err)
	}
	at := time.UnixMilli(int64(math.Round(float64(scraped[0].Value) * 1000)))
	if err := l.expect(prom, byExporter, "increase(%s[1h])", at, want); err != nil {
		l.t.Error(err)
	}
}

// Of 61 runs that report by three ways, Prometheus has by each of them just what the reports say; the dashboard and
// the rules have their data from it.
func TestExact(t *testing.T) {
	l := newLab(t)
	l.exporter()
	l.nodeExporter()
	l.pushgateway()
	begin := time.Now()
	prom := l.prometheus(l.configure())
	reports := l.runs(scenarios(), 0)
	want := sum(reports)
	checkSums(t, want)
	for _, job := range []string{byExporter, byTextfile, byPush} {
		l.final(prom, job, want)
	}
	l.rises(prom, want)

	// A push replaces the one before, of the same suite alone.
	again := l.run("ok", reports[0].Suite)
	l.final(prom, byPush, sum(append([]report{again}, reports[1:]...)))
	want = sum(append(reports, again))
	l.final(prom, byExporter, want)
	l.final(prom, byTextfile, want)

	// A run that is killed is lost, to the exporter.
	lost := l.start(l.program, "demo", "--scenario", "hang", "--suite", "lost", "--memory", "32M", "--shm-size", "64K")
	count := func(query string, n float64) {
		t.Helper()
		l.poll(func() error {
			v, err := l.query(prom, query, time.Time{})
			if err == nil && (len(v) != 1 || float64(v[0].Value) != n) {
				err = fmt.Errorf("%s is %v, not %v", query, v, n)
			}
			return err
		})
	}
	count(`ktstr_vmm_runs_running{suite="lost"}`, 1)
	lost.kill()
	count(`ktstr_vmm_runs_total{suite="lost", outcome="lost"}`, 1)
	l.rises(prom, want)

	l.asksRules(prom)
	l.asksDashboard(prom, begin)
}

// The sums are right when the exporter is killed in between, while runs go on, and when runs end while there is none;
// also where Prometheus takes native histograms.
func TestExactKilled(t *testing.T) {
	l := newLab(t)
	l.native = true
	exporter := l.exporter()
	l.nodeExporter()
	l.pushgateway()
	prom := l.prometheus(l.configure(), "--enable-feature=native-histograms")
	all := scenarios()
	half := len(all) / 2
	all[0], all[half] = all[half], all[0] // the run that goes on for long
	reports := l.runs(all[:half], 0)
	l.final(prom, byExporter, sum(reports))
	done := make(chan []report)
	go func() { done <- l.runs(all[half:], half) }()
	defer func() { <-done }() // also when the test has failed
	l.poll(func() error {
		v, err := l.query(prom, "sum(ktstr_vmm_runs_running) > 0", time.Time{})
		if err == nil && len(v) == 0 {
			err = errors.New("no run goes on")
		}
		return err
	})
	exporter.kill()
	l.poll(func() error { // until a run has ended meanwhile
		left, err := filepath.Glob(filepath.Join(l.dir, "ktstr-vmm", "spool", "*"))
		if err == nil && len(left) == 0 {
			err = errors.New("no run has left its end")
		}
		return err
	})
	l.exporter()
	reports = append(reports, <-done...)
	close(done)
	want := sum(reports)
	checkSums(t, want)
	for _, job := range []string{byExporter, byTextfile, byPush} {
		l.final(prom, job, want)
	}
	l.rises(prom, want)
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "prometheus.md"))
	if err != nil {
		t.Fatal(err)
	}
	quantile := regexp.MustCompile(`(?m)^    (histogram_quantile\(.*)$`).FindSubmatch(page)
	if quantile == nil {
		t.Fatal("docs/prometheus.md has no query of native histograms")
	}
	if v, err := l.query(prom, string(quantile[1]), time.Time{}); err != nil || len(v) == 0 || !(v[0].Value > 0) {
		t.Errorf("%s: %v, %v", quantile[1], v, err)
	}
}
