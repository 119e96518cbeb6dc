package monitor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Namespace is the prefix of all metrics' names.
const Namespace = "ktstr_vmm"

// How fine native histograms are: the next bucket is at most a tenth wider, until there are so many of them.
const (
	nativeFactor  = 1.1
	NativeBuckets = 160
	nativeReset   = time.Hour // before a histogram with too many is reset instead
)

type descs struct {
	messages, bytes, drops, crcErrors, faults, used, capacity, bellDrains *prometheus.Desc
}

func newDescs() descs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(Namespace, "ring", name), help, labels, nil)
	}
	return descs{
		messages:  desc("messages_total", "Messages read from the ring, by type.", "type"),
		bytes:     desc("bytes_total", "Bytes of messages read from the ring, with their headers."),
		drops:     desc("drops_total", "Messages that the guest says it had no room for."),
		crcErrors: desc("crc_errors_total", "Messages whose payload did not match its CRC-32."),
		faults:    desc("faults_total", "Breaches of the ring's protocol, by kind.", "kind"),
		used:      desc("used_bytes", "Bytes that waited in the ring at the last drain."),
		capacity:  desc("capacity_bytes", "Bytes of data that the ring holds."),
		bellDrains: prometheus.NewDesc(prometheus.BuildFQName(Namespace, "doorbell", "drains_total"),
			"Times that the ring was drained because the guest rang its doorbell.", nil, nil),
	}
}

func newHistograms() (duration, lateness prometheus.Histogram) {
	histogram := func(name, help string) prometheus.Histogram {
		return NewHistogram(name, help, prometheus.ExponentialBuckets(1e-6, 4, 11)) // 1 µs to 1.05 s
	}
	return histogram("drain_duration_seconds", "Time that a tick took to drain the ring and handle what was in it."),
		histogram("poll_late_seconds", "How late a tick came.")
}

// NewHistogram returns a histogram of ours, with classic buckets of these bounds and with native ones.
func NewHistogram(name, help string, bounds []float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: Namespace, Name: name, Help: help,
		Buckets:                         bounds,
		NativeHistogramBucketFactor:     nativeFactor,
		NativeHistogramMaxBucketNumber:  NativeBuckets,
		NativeHistogramMinResetDuration: nativeReset,
	})
}

// Describe implements prometheus.Collector.
func (m *Monitor) Describe(ch chan<- *prometheus.Desc) {
	d := m.descs
	for _, desc := range []*prometheus.Desc{d.messages, d.bytes, d.drops, d.crcErrors, d.faults, d.used,
		d.capacity, d.bellDrains} {
		ch <- desc
	}
	m.duration.Describe(ch)
	m.lateness.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Monitor) Collect(ch chan<- prometheus.Metric) {
	s := m.Stats()
	metric := func(d *prometheus.Desc, t prometheus.ValueType, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, float64(v), labels...)
	}
	for _, t := range shm.Types() {
		metric(m.descs.messages, prometheus.CounterValue, s.ByType[t.String()], t.String())
	}
	metric(m.descs.messages, prometheus.CounterValue, s.ByType[Unknown], Unknown)
	for kind, n := range s.Faults {
		metric(m.descs.faults, prometheus.CounterValue, n, kind)
	}
	metric(m.descs.bytes, prometheus.CounterValue, s.Bytes)
	metric(m.descs.drops, prometheus.CounterValue, s.Drops)
	metric(m.descs.crcErrors, prometheus.CounterValue, s.CRCErrors)
	metric(m.descs.used, prometheus.GaugeValue, s.Used)
	metric(m.descs.capacity, prometheus.GaugeValue, s.Capacity)
	metric(m.descs.bellDrains, prometheus.CounterValue, s.BellDrains)
	ch <- m.duration
	ch <- m.lateness
}
