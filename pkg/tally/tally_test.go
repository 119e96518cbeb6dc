package tally_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

var labels = tally.Labels{Suite: "nightly", Kernel: "bzImage", Arch: "x86_64", Accelerator: "kvm"}

// histogram is a registry with poll_late_seconds, after these observations.
func histogram(t testing.TB, factor, threshold float64, observed ...float64) []*dto.MetricFamily {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ktstr_vmm_poll_late_seconds", Help: "H.",
		Buckets: []float64{0.1, 1, 10}, NativeHistogramBucketFactor: factor, NativeHistogramZeroThreshold: threshold})
	for _, v := range observed {
		h.Observe(v)
	}
	return gather(t, h)
}

func gather(t testing.TB, c ...prometheus.Collector) []*dto.MetricFamily {
	r := prometheus.NewRegistry()
	r.MustRegister(c...)
	f, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// counter is a registry with a counter of this label.
func counter(t testing.TB, name, label, value string, v float64) []*dto.MetricFamily {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "H."}, []string{label})
	c.WithLabelValues(value).Add(v)
	return gather(t, c)
}

// add adds what has to be good.
func add(t testing.TB, s *tally.Tally, l tally.Labels, f []*dto.MetricFamily) {
	t.Helper()
	if err := s.Add(l, f); err != nil {
		t.Fatal(err)
	}
}

// A sum of parts is what one histogram has that saw all of it, for classic and native buckets.
func TestHistogramSum(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0, 1000), 1, 50)
		a, b := values.Draw(rt, "a"), values.Draw(rt, "b")
		parts, whole := tally.New(0), tally.New(0)
		add(t, parts, labels, histogram(t, 1.1, 0, a...))
		add(t, parts, labels, histogram(t, 1.1, 0, b...))
		add(t, whole, labels, histogram(t, 1.1, 0, append(a, b...)...))
		pf, _ := parts.Gather()
		wf, _ := whole.Gather()
		same := func(x, y float64) bool { return math.Abs(x-y) <= 1e-9*math.Abs(x) } // the order of a sum
		if d := cmp.Diff(wf, pf, protocmp.Transform(), cmp.Comparer(same)); d != "" {
			rt.Fatal(d)
		}
	})
}

// Histograms of other schemas and zero thresholds are summed at the coarser ones; nothing is lost.
func TestHistogramReduced(t *testing.T) {
	s := tally.New(0)
	add(t, s, labels, histogram(t, 1.02, 1e-9, 0.5e-9, 0.5, 0.7, 3))
	add(t, s, labels, histogram(t, 1.9, 1e-2, 1e-3, 0.6, 500))
	add(t, s, labels, histogram(t, 1.1, 0, 5e-3))
	families, _ := s.Gather()
	h := families[0].GetMetric()[0].GetHistogram()
	if h.GetSchema() != 1 || h.GetZeroThreshold() < 1e-2 || h.GetZeroCount() != 3 || h.GetSampleCount() != 8 {
		t.Fatal(h)
	}
	if err := tally.New(0).Merge(families); err != nil { // judges that the buckets are the count
		t.Fatal(err)
	}
}

// The number of label sets, and of a family's own labels, has a limit.
func TestLimits(t *testing.T) {
	s := tally.New(3)
	for i := range 10 {
		l := labels
		l.Suite = fmt.Sprint(i)
		add(t, s, l, counter(t, "ktstr_vmm_ring_messages_total", "type", "EXIT", 1))
	}
	if got := value(t, s, "ktstr_vmm_ring_messages_total", "suite", tally.Other); got != 7 || len(s.Groups()) != 4 {
		t.Errorf("%v messages of other suites, %d groups", got, len(s.Groups()))
	}
	s = tally.New(0)
	for i := range 1000 {
		add(t, s, labels, counter(t, "ktstr_vmm_ring_messages_total", "type", fmt.Sprint(i), 1))
	}
	families, _ := s.Gather()
	if n := len(families[0].GetMetric()); n != 65 {
		t.Errorf("%d series", n)
	}
	if got := value(t, s, "ktstr_vmm_ring_messages_total", "type", tally.Other); got != 936 {
		t.Errorf("%v messages of other types", got)
	}
}

// value is the sum of a counter's series with this label.
func value(t testing.TB, s *tally.Tally, name, label, is string) (sum float64) {
	t.Helper()
	families, err := s.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, p := range m.GetLabel() {
				if f.GetName() == name && p.GetName() == label && p.GetValue() == is {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// dropped is a family with this counter.
func dropped(c *dto.Counter) []*dto.MetricFamily {
	return []*dto.MetricFamily{{Name: proto.String("ktstr_vmm_ring_drops_total"), Metric: []*dto.Metric{{Counter: c}}}}
}

// What is no sum is refused, and nothing of it is added.
func TestInvalid(t *testing.T) {
	const late = "ktstr_vmm_poll_late_seconds"
	native := func(change func(*dto.Histogram)) []*dto.MetricFamily {
		f := histogram(t, 1.1, 0, 1, 2, 3)
		change(f[0].Metric[0].Histogram)
		return f
	}
	for name, f := range map[string][]*dto.MetricFamily{
		"negative":    dropped(&dto.Counter{Value: proto.Float64(-1)}),
		"NaN":         dropped(&dto.Counter{Value: proto.Float64(math.NaN())}),
		"huge":        counter(t, "ktstr_vmm_ring_messages_total", "type", "x", 1e300),
		"no counter":  dropped(nil),
		"label":       counter(t, "ktstr_vmm_ring_messages_total", "run", "1", 1),
		"long label":  counter(t, "ktstr_vmm_ring_messages_total", "type", strings.Repeat("x", 200), 1),
		"own label":   counter(t, "ktstr_vmm_ring_messages_total", "suite", "x", 1),
		"type":        {{Name: proto.String(late), Type: dto.MetricType_COUNTER.Enum()}},
		"schema":      native(func(h *dto.Histogram) { h.Schema = proto.Int32(9) }),
		"count":       native(func(h *dto.Histogram) { h.SampleCount = proto.Uint64(4) }),
		"delta":       native(func(h *dto.Histogram) { h.PositiveDelta[0] = -1 }),
		"more deltas": native(func(h *dto.Histogram) { h.PositiveDelta = append(h.PositiveDelta, 0) }),
		"spans":       native(func(h *dto.Histogram) { h.PositiveSpan[0].Length = proto.Uint32(1 << 31) }),
		"index":       native(func(h *dto.Histogram) { h.PositiveSpan[0].Offset = proto.Int32(1 << 30) }),
		"buckets":     native(func(h *dto.Histogram) { h.Bucket[0].CumulativeCount = proto.Uint64(9) }),
		"bounds":      native(func(h *dto.Histogram) { h.Bucket[1].UpperBound = h.Bucket[0].UpperBound }),
		"threshold":   native(func(h *dto.Histogram) { h.ZeroThreshold = proto.Float64(math.Inf(1)) }),
	} {
		s := tally.New(0)
		if err := s.Add(labels, f); !errors.Is(err, tally.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if families, _ := s.Gather(); len(families) != 0 {
			t.Errorf("%s: added %v", name, families)
		}
	}
}

// FuzzMerge: nothing that is read makes it panic, and what it takes it takes again.
func FuzzMerge(f *testing.F) {
	for _, family := range histogram(f, 1.1, 0, 1, 2) {
		family.Metric[0].Label = labels.Pairs()
		b, _ := proto.Marshal(family)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var family dto.MetricFamily
		if proto.Unmarshal(b, &family) != nil {
			return
		}
		s := tally.New(0)
		if s.Merge([]*dto.MetricFamily{&family, &family}) != nil {
			return
		}
		families, _ := s.Gather()
		if err := tally.New(0).Merge(families); err != nil {
			t.Fatal(err)
		}
	})
}

// Many add to one textfile at the same time, and promlint has nothing to say about it.
func TestTextfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.prom")
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			s := tally.New(0)
			add(t, s, labels, counter(t, "ktstr_vmm_ring_messages_total", "type", "EXIT", 2))
			add(t, s, labels, histogram(t, 1.1, 0, 0.5, 100))
			if err := errors.Join(s.End(labels, "exited", time.Second), s.AddToTextfile(t.Context(), path)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	sum := tally.New(0)
	if err := sum.ReadTextfile(path); err != nil {
		t.Fatal(err)
	}
	if got := value(t, sum, "ktstr_vmm_runs_total", "outcome", "exited"); got != 20 {
		t.Errorf("%v runs", got)
	}
	text, _ := os.ReadFile(path)
	const group = `accelerator="kvm",arch="x86_64",kernel="bzImage",suite="nightly"`
	for _, want := range []string{"_messages_total{" + group + `,type="EXIT"} 40`, `le="1"} 20`, `le="+Inf"} 40`,
		"_late_seconds_sum{" + group + "} 2010"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s is not in\n%s", want, text)
		}
	}
	if problems, err := testutil.GatherAndLint(sum); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// A file that is not a sum's is left alone.
func TestForeignTextfile(t *testing.T) {
	for _, text := range []string{"node_load1 3\n", "x{", "ktstr_vmm_ring_drops_total -1\n",
		"# TYPE ktstr_vmm_ring_drops_total counter\nktstr_vmm_ring_drops_total{job=\"1\"} 1\n"} {
		path := filepath.Join(t.TempDir(), "x.prom")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := tally.New(0)
		err := s.AddToTextfile(t.Context(), path)
		if !errors.Is(err, tally.ErrInvalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
		if got, _ := os.ReadFile(path); string(got) != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// Who holds the lock for ever holds up nobody beyond a limit.
func TestTextfileLocked(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = tally.New(0).AddToTextfile(ctx, filepath.Join(dir.Name(), "x.prom"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// A push is grouped by job and suite. Errors do not show the password.
func TestPush(t *testing.T) {
	var path, user, password string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path = r.URL.Path
		user, password, _ = r.BasicAuth()
		if strings.HasPrefix(path, "/bad") {
			http.Error(w, strings.Repeat("x", 1<<20), http.StatusTeapot)
		}
	}))
	defer server.Close()
	s := tally.New(0)
	add(t, s, labels, counter(t, "ktstr_vmm_ring_messages_total", "type", "EXIT", 2))
	address := strings.Replace(server.URL, "//", "//me:secret@", 1)
	if err := s.Push(t.Context(), address, "nightly"); err != nil {
		t.Fatal(err)
	}
	if path != "/metrics/job/ktstr-vmm/suite/nightly" || user != "me" || password != "secret" {
		t.Errorf("%s by %s:%s", path, user, password)
	}
	if err := s.Push(t.Context(), address, ""); err != nil || path != "/metrics/job/ktstr-vmm" {
		t.Errorf("%s, %v", path, err)
	}
	err := s.Push(t.Context(), address+"/bad", "nightly")
	if err == nil || strings.Contains(err.Error(), "secret") || len(err.Error()) > 1000 {
		t.Error(err)
	}
	if err := tally.CheckURL("pushgateway:9091"); err == nil {
		t.Error("an address without http is taken")
	}
}
