package run_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// withKernel puts a kernel into a fake machine's memory, behind its ring.
func (f *fake) withKernel(t *testing.T) run.Config {
	t.Helper()
	kernel := kerneltest.Kernel{Arch: "x86_64", CPUs: []kerneltest.CPU{
		{Task: kerneltest.Task{PID: 57, Comm: "hangs"}, Online: true, NrRunning: 1, Clock: 5e8, SCXFlags: 3},
		{Task: kerneltest.Task{Comm: "swapper/1"}, Online: true},
	}}
	cfg := f.config()
	cfg.VM.Topology = topology.OfCores(len(kernel.CPUs))
	layout, err := cfg.VM.Kernel.Board().Layout(fakeMemory, f.ring.Len())
	if err != nil {
		t.Fatal(err)
	}
	ring := guestmem.Region{Base: layout.Reserved.Base, Mem: make([]byte, layout.Reserved.Size)}
	if f.memory, err = guestmem.New(ring, kernel.Region(t)); err != nil {
		t.Fatal(err)
	}
	if f.ring, err = f.memory.Window(ring.Base, uint64(len(ring.Mem))); err != nil {
		t.Fatal(err)
	}
	cfg.Symbols = func() (*introspect.Kernel, error) { return nil, errors.New("there is no file") }
	return cfg
}

func facts() []introspect.CPU {
	return []introspect.CPU{
		{Index: 0, Online: true, NrRunning: 1, Clock: 500 * time.Millisecond, PID: 57, Comm: "hangs",
			SCX: &introspect.SCX{Flags: 3}},
		{Index: 1, Online: true, Idle: true, Comm: "swapper/1", SCX: &introspect.SCX{}},
	}
}

// A guest that hangs is looked at when it is asked to stop, and when it was stopped.
func TestLooks(t *testing.T) {
	t.Parallel()
	f := newFake(t, hangs)
	cfg := f.withKernel(t)
	cfg.Timeout, cfg.Grace = 4*time.Second, 2*time.Second
	r := ended(t, t.Context(), cfg, run.TimedOut)
	var moments []run.Moment
	for _, l := range r.Looks {
		moments = append(moments, l.When)
		if diff := cmp.Diff(facts(), l.CPUs); diff != "" {
			t.Errorf("%s: %s", l.When, diff)
		}
	}
	if diff := cmp.Diff([]run.Moment{run.AskedToStop, run.Stopped}, moments); diff != "" || r.LookError != nil {
		t.Errorf("%s, %v", diff, r.LookError)
	}
}

// A scenario that has stalled is looked at, and the guest goes on.
func TestLookAtStall(t *testing.T) {
	t.Parallel()
	f := newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
		_ = w.TryWrite(shm.ScenarioStart, nil)
		<-stopped
	})
	cfg := f.withKernel(t)
	cfg.Timeout, cfg.Dumps.Stall.Polls = 3*time.Second, 10
	r := ended(t, t.Context(), cfg, run.TimedOut)
	if len(r.Looks) != 2 || r.Looks[0].When != run.Stalled || r.Looks[1].When != run.Stopped {
		t.Fatalf("%+v, %v", r.Looks, r.LookError)
	}
	if diff := cmp.Diff(facts(), r.Looks[0].CPUs); diff != "" {
		t.Error(diff)
	}
}

// A guest that reported its end is not looked at, unless there are metrics.
func TestNoLooks(t *testing.T) {
	f := newFake(t, sends(false, coded(shm.Exit, 0)))
	r := ended(t, t.Context(), f.withKernel(t), run.Exited)
	if len(r.Looks) > 0 || r.LookError != nil {
		t.Errorf("%v, %v", r.Looks, r.LookError)
	}
}

// A kernel's file on a file system that does not answer delays no deadline, and the end of a run by 2 s.
func TestLooksDoNotWaitForFiles(t *testing.T) {
	t.Parallel()
	f := newFake(t, hangs)
	cfg := f.withKernel(t)
	cfg.Timeout = time.Second
	answer := make(chan struct{})
	defer close(answer)
	cfg.Symbols = func() (*introspect.Kernel, error) { <-answer; return nil, errors.New("too late") }
	r := ended(t, t.Context(), cfg, run.TimedOut)
	if len(r.Looks) > 0 || r.LookError == nil {
		t.Errorf("%v, %v", r.Looks, r.LookError)
	}
}

// Metrics show what the CPUs do while the guest runs, by the CPUs' numbers.
func TestCPUMetrics(t *testing.T) {
	shown := make(chan map[string]float64, 1)
	registry := prometheus.NewRegistry()
	f := newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
		for {
			if values := gathered(t, registry); values["guest_cpu_looks_total cpu=0 state=busy"] > 2 {
				shown <- values
				return
			}
			select {
			case <-stopped:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	cfg := f.withKernel(t)
	cfg.Registry, cfg.CPUMetrics = registry, true
	ended(t, t.Context(), cfg, run.NoVerdict)
	select {
	case values := <-shown:
		for name, want := range map[string]float64{
			"guest_cpu_nr_running cpu=0":             1,
			"guest_cpu_nr_running cpu=1":             0,
			"guest_cpu_clock_seconds cpu=0":          0.5,
			"guest_cpu_scx_flags cpu=0":              3,
			"guest_cpu_scx_nr_running cpu=1":         0,
			"guest_cpu_looks_total cpu=0 state=idle": 0,
			"guest_cpu_looks_total cpu=1 state=busy": 0,
		} {
			if got, ok := values[name]; !ok || got != want {
				t.Errorf("%s: %v (%v), want %v", name, got, ok, want)
			}
		}
	default:
		t.Error("no CPU was seen busy")
	}
}
