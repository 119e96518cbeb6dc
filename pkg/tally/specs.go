package tally

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
)

// Names of what is counted of ended runs.
const (
	runsTotal    = monitor.Namespace + "_runs_total"
	runsDuration = monitor.Namespace + "_runs_duration_seconds"
)

// spec is a family that is summed.
type spec struct {
	name, help string
	kind       dto.MetricType
	labels     []string // beside those of Labels
}

// specs are all of them, by name.
var specs = listSpecs()

func listSpecs() map[string]spec {
	all := map[string]spec{}
	add := func(kind dto.MetricType, name, help string, labels ...string) {
		name = prometheus.BuildFQName(monitor.Namespace, "", name)
		all[name] = spec{name, help, kind, labels}
	}
	const counter, histogram = dto.MetricType_COUNTER, dto.MetricType_HISTOGRAM
	add(counter, "ring_messages_total", "Messages read from the runs' rings, by type.", "type")
	add(counter, "ring_bytes_total", "Bytes of messages read from the runs' rings, with their headers.")
	add(counter, "ring_drops_total", "Messages that the guests say they had no room for.")
	add(counter, "ring_crc_errors_total", "Messages whose payload did not match its CRC-32.")
	add(counter, "ring_faults_total", "Breaches of the ring's protocol, by kind.", "kind")
	add(counter, "doorbell_drains_total", "Times that a ring was drained because a guest rang its doorbell.")
	add(counter, "doorbell_rings_total", "How often guests rang their doorbells.")
	add(counter, "kvm_exits_total", "How often guests left KVM, by reason.", "reason")
	add(histogram, "drain_duration_seconds",
		"Time that a tick took to drain a ring and handle what was in it.")
	add(histogram, "poll_late_seconds", "How late ticks came.")
	add(counter, "runs_total", "Runs that have ended, by outcome.", "outcome")
	add(histogram, "runs_duration_seconds", "How long the runs took that have ended.", "outcome")
	return all
}

// observed is a histogram of one run's duration.
func observed(d time.Duration) *dto.Histogram {
	h := monitor.NewHistogram("runs_duration_seconds", "", prometheus.ExponentialBuckets(0.125, 2, 14)) // to 1024 s
	h.Observe(d.Seconds())
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		return &dto.Histogram{} // a histogram without labels always writes
	}
	return m.GetHistogram()
}
