package run

import (
	"iter"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
)

// metrics shows a run to Prometheus, while it goes on and after it.
type metrics struct {
	start  time.Time
	memory uint64
	labels []string // of run_info
	rings  func() uint64
	exits  iter.Seq2[string, uint64] // nil where there are none
	result atomic.Pointer[Result]    // when the run is over

	ringsDesc, exitsDesc, memoryDesc, infoDesc, outcomeDesc, durationDesc, startDesc *prometheus.Desc
}

func newMetrics(cfg Config, r *Result, m Machine) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(monitor.Namespace, "", name), help, labels, nil)
	}
	return &metrics{
		start:        r.StartedAt,
		memory:       r.Memory,
		labels:       validLabels(cfg.ID, cfg.Version, r.Arch, r.Accelerator, cfg.KernelName),
		rings:        m.Rings,
		exits:        m.Exits(),
		ringsDesc:    desc("doorbell_rings_total", "How often the guest rang its doorbell."),
		exitsDesc:    desc("kvm_exits_total", "How often the guest left KVM, by reason.", "reason"),
		memoryDesc:   desc("guest_memory_bytes", "RAM that the guest was given, the ring included."),
		infoDesc:     desc("run_info", "The run; always 1.", "id", "version", "arch", "accelerator", "kernel"),
		outcomeDesc:  desc("run_outcome", "1 for the run's outcome; all 0 while it goes on.", "outcome"),
		durationDesc: desc("run_duration_seconds", "How long the run has taken so far, or took."),
		startDesc:    desc("run_start_timestamp_seconds", "When the run was started."),
	}
}

// validLabels makes any strings valid label values: a file's name need not be UTF-8.
func validLabels(values ...string) []string {
	for i, v := range values {
		values[i] = strings.ToValidUTF8(v, "\ufffd")
	}
	return values
}

// finish makes the metrics show a run that is over.
func (m *metrics) finish(r *Result) { m.result.Store(r) }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.ringsDesc, m.memoryDesc, m.infoDesc, m.outcomeDesc, m.durationDesc,
		m.startDesc} {
		ch <- d
	}
	if m.exits != nil {
		ch <- m.exitsDesc
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if m.exits != nil {
		for reason, n := range m.exits {
			ch <- prometheus.MustNewConstMetric(m.exitsDesc, prometheus.CounterValue, float64(n), reason)
		}
	}
	ch <- prometheus.MustNewConstMetric(m.ringsDesc, prometheus.CounterValue, float64(m.rings()))
	gauge(m.memoryDesc, float64(m.memory))
	gauge(m.infoDesc, 1, m.labels...)
	gauge(m.startDesc, float64(m.start.UnixMilli())/1e3)
	duration, outcome := time.Since(m.start), Outcome("")
	if r := m.result.Load(); r != nil {
		duration, outcome = r.Duration, r.Outcome
	}
	for _, o := range Outcomes() {
		v := 0.0
		if o == outcome {
			v = 1
		}
		gauge(m.outcomeDesc, v, string(o))
	}
	gauge(m.durationDesc, duration.Seconds())
}
