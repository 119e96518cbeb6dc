package run

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
)

// cpuMetrics shows to Prometheus what a guest's CPUs did when they were last looked at. Their only label is a CPU's
// number, of which there are as many as the guest was given.
type cpuMetrics struct {
	duration prometheus.Histogram
	idle     []atomic.Uint64 // looks that found the CPU idle
	busy     []atomic.Uint64
	latest   atomic.Pointer[[]introspect.CPU]

	looksDesc, runningDesc, clockDesc, scxRunningDesc, scxFlagsDesc *prometheus.Desc
}

func newCPUMetrics(cpus int) *cpuMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(monitor.Namespace, "guest_cpu", name), help, labels, nil)
	}
	return &cpuMetrics{
		duration: monitor.NewHistogram("guest_look_duration_seconds",
			"How long a look at all of the guest's CPUs took.", prometheus.ExponentialBuckets(1e-6, 4, 8)),
		idle: make([]atomic.Uint64, cpus),
		busy: make([]atomic.Uint64, cpus),
		looksDesc: desc("looks_total", "How often the CPU was looked at from outside, and what it was doing.",
			"cpu", "state"),
		runningDesc: desc("nr_running", "Runnable tasks on the CPU's run queue, the running one included.", "cpu"),
		clockDesc: desc("clock_seconds", "The run queue's clock. It stands still while the CPU sleeps or hangs.",
			"cpu"),
		scxRunningDesc: desc("scx_nr_running", "Runnable tasks of the sched_ext scheduler on the CPU.", "cpu"),
		scxFlagsDesc:   desc("scx_flags", "The run queue's sched_ext flags: linux, enum scx_rq_flags.", "cpu"),
	}
}

// show makes the metrics show a look.
func (m *cpuMetrics) show(cpus []introspect.CPU) {
	for _, c := range cpus {
		if c.Idle {
			m.idle[c.Index].Add(1)
		} else {
			m.busy[c.Index].Add(1)
		}
	}
	m.latest.Store(&cpus)
}

// Describe implements prometheus.Collector.
func (m *cpuMetrics) Describe(ch chan<- *prometheus.Desc) {
	m.duration.Describe(ch)
	for _, d := range []*prometheus.Desc{m.looksDesc, m.runningDesc, m.clockDesc, m.scxRunningDesc, m.scxFlagsDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *cpuMetrics) Collect(ch chan<- prometheus.Metric) {
	m.duration.Collect(ch)
	for i := range m.busy {
		for state, n := range map[string]uint64{"busy": m.busy[i].Load(), "idle": m.idle[i].Load()} {
			ch <- prometheus.MustNewConstMetric(m.looksDesc, prometheus.CounterValue, float64(n), strconv.Itoa(i), state)
		}
	}
	latest := m.latest.Load()
	if latest == nil {
		return
	}
	for _, c := range *latest {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, strconv.Itoa(c.Index))
		}
		gauge(m.runningDesc, float64(c.NrRunning))
		gauge(m.clockDesc, c.Clock.Seconds())
		if c.SCX != nil {
			gauge(m.scxRunningDesc, float64(c.SCX.NrRunning))
			gauge(m.scxFlagsDesc, float64(c.SCX.Flags))
		}
	}
}
