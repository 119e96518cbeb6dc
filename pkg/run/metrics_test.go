package run_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// gathered is what a registry has of what the run itself says: the value by name and labels.
func gathered(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "ktstr_vmm_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// Metrics show the run while it goes on, and how it ended from then on. Names of files that are not UTF-8 are
// no reason to show none.
func TestMetrics(t *testing.T) {
	f := newFake(t, sends(false, coded(shm.Exit, 0)))
	f.exits = maps.All(map[string]uint64{"halt": 3, "io": 4})
	cfg := f.config()
	registry := prometheus.NewRegistry()
	cfg.Registry, cfg.ID, cfg.Version, cfg.KernelName = registry, "1", "2", "\xff"
	var during map[string]float64
	cfg.OnStart = func() { during = gathered(t, registry) }
	r := ended(t, t.Context(), cfg, run.Exited)
	after := gathered(t, registry)
	const info = "run_info accelerator= arch=x86_64 id=1 kernel=\ufffd version=2"
	for name, want := range map[string][2]float64{ // during, and after
		info:                            {1, 1},
		"kvm_exits_total reason=io":     {4, 4},
		"guest_memory_bytes":            {fakeMemory, fakeMemory},
		"ring_messages_total type=EXIT": {0, 1},
		"run_outcome outcome=exited":    {0, 1},
		"run_outcome outcome=timeout":   {0, 0},
		"run_duration_seconds":          {during["run_duration_seconds"], r.Duration.Seconds()},
	} {
		for i, values := range []map[string]float64{during, after} {
			if got, ok := values[name]; !ok || got != want[i] {
				t.Errorf("%s: %v (%v), want %v", name, got, ok, want[i])
			}
		}
	}
	for _, o := range run.Outcomes() {
		if _, ok := after["run_outcome outcome="+string(o)]; !ok {
			t.Errorf("no %s", o)
		}
	}
}

// A registry has one run. That of another fails before its guest starts, and its machine is closed.
func TestRegistryOfAnotherRun(t *testing.T) {
	registry := prometheus.NewRegistry()
	for _, outcome := range []run.Outcome{run.Exited, run.Failed} {
		f := newFake(t, sends(false, coded(shm.Exit, 0)))
		cfg := f.config()
		cfg.Registry = registry
		r := ended(t, t.Context(), cfg, outcome)
		if outcome == run.Failed && !strings.Contains(r.Reason, "registering metrics") {
			t.Error(r.Reason)
		}
		select {
		case <-f.closed:
		default:
			t.Errorf("%s: the machine is not closed", outcome)
		}
	}
}

// A run's metrics are named and described as promlint asks for.
func TestMetricsLint(t *testing.T) {
	f := newFake(t, sends(false, coded(shm.Exit, 0)))
	f.exits = maps.All(map[string]uint64{"halt": 3})
	cfg := f.config()
	registry := prometheus.NewRegistry()
	cfg.Registry = registry
	ended(t, t.Context(), cfg, run.Exited)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
