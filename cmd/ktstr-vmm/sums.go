package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/exporter"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

// sumsLimit is how long a run that is over waits for the textfile and the Pushgateway. A signal cuts it short.
const sumsLimit = 3 * time.Second

// sums are the metrics of a run that outlive it: in a file, in a Pushgateway, in an exporter. What fails there is a
// warning: a test's verdict does not depend on it.
type sums struct {
	registry          *prometheus.Registry // nil if nobody wants any
	socket            string               // of the exporter, or ""
	client            *exporter.Client
	arch, accelerator string // known when the machine is described
}

// prepare makes the run's metrics be gathered where somebody wants them.
func (m *sums) prepare(s *session, cfg *run.Config) {
	switch s.Exporter {
	case config.ExporterAuto:
		m.socket = exporter.Find()
	case config.ExporterNone:
	default:
		m.socket = s.Exporter
	}
	if m.socket == "" && s.MetricsTextfile == "" && s.MetricsPush == "" {
		return
	}
	m.registry = s.registry
	if m.socket == "" {
		return
	}
	about := exporter.Run{ID: s.id, Started: time.Now()}
	labels := tally.Labels{Suite: s.Suite, Kernel: cfg.KernelName}
	cfg.OnStart = func() {
		labels.Arch, labels.Accelerator = m.arch, m.accelerator
		about.Labels = labels
		m.client = exporter.Start(m.socket, about, m.registry)
	}
}

// publish delivers the metrics of a run that is over.
func (m *sums) publish(s *session, r *run.Result) {
	if m.registry == nil {
		return
	}
	labels := tally.Labels{Suite: s.Suite, Kernel: r.Kernel, Arch: r.Arch, Accelerator: r.Accelerator}
	if m.socket != "" {
		if m.client == nil { // the machine was never built
			m.client = exporter.Start(m.socket, exporter.Run{ID: r.ID, Labels: labels, Started: r.StartedAt}, m.registry)
		}
		if err := m.client.End(exporter.End{Outcome: string(r.Outcome), Duration: r.Duration}); err != nil {
			s.log.Warn("the exporter does not know how the run ended", zap.Error(err))
		}
	}
	if s.MetricsTextfile == "" && s.MetricsPush == "" {
		return
	}
	sum := tally.New(0)
	families, err := m.registry.Gather()
	if err = errors.Join(err, sum.Add(labels, families), sum.End(labels, string(r.Outcome), r.Duration)); err != nil {
		s.fail(fmt.Sprintf("warning: the run's metrics: %v", err))
		return
	}
	d := delivery{textfile: s.MetricsTextfile, push: s.MetricsPush, suite: s.Suite}
	d.deliver(sum, s.signals, func(err error) {
		s.fail(fmt.Sprintf("warning: %v; the run's outcome is what it was", err))
	})
}

// delivery is where a sum of metrics is wanted, "" for nowhere.
type delivery struct{ textfile, push, suite string }

// wanted reports whether it is wanted anywhere.
func (d delivery) wanted() bool { return d.textfile != "" || d.push != "" }

// deliver puts a sum where it is wanted, and warns of what fails. It gives up when sumsLimit is over or at a signal.
func (d delivery) deliver(sum *tally.Tally, signals <-chan os.Signal, warn func(error)) {
	ctx, cancel := context.WithTimeout(context.Background(), sumsLimit)
	defer cancel()
	failed := make(chan error, 2) // both have room: a file system may never answer
	waiting := 0
	begin := func(flag, value string, f func() error) {
		if value == "" {
			return
		}
		waiting++
		go func() {
			err := f()
			if err != nil {
				err = fmt.Errorf("%s: %w", flag, err)
			}
			failed <- err
		}()
	}
	begin("--metrics-textfile", d.textfile, func() error { return sum.AddToTextfile(ctx, d.textfile) })
	begin("--metrics-push", d.push, func() error { return sum.Push(ctx, d.push, d.suite) })
	late := time.After(sumsLimit + sumsLimit/10) // ctx has ended what can be ended
	for range waiting {
		select {
		case err := <-failed:
			if err != nil {
				warn(err)
			}
		case <-signals:
			warn(errors.New("not all of the metrics were delivered before the signal"))
			return
		case <-late:
			warn(fmt.Errorf("not all of the metrics were delivered within %v", sumsLimit))
			return
		}
	}
}
