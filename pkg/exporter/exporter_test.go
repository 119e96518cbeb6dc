package exporter_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/pkg/exporter"
	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open starts an exporter in a folder, which the test's end closes.
func open(t *testing.T, dir string) *exporter.Exporter {
	t.Helper()
	e, err := exporter.New(exporter.Config{Socket: filepath.Join(dir, "run", "exporter.sock"),
		State: filepath.Join(dir, "state"), Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// folder is one whose path a socket's address has room for.
func folder(t *testing.T) string {
	dir, err := os.MkdirTemp("", "exporter")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func socket(dir string) string { return filepath.Join(dir, "run", "exporter.sock") }

// Runs have sockets in the exporter's folder, so the folder is no sign of one. Its spool folder is, while it is away.
func TestFind(t *testing.T) {
	dir := folder(t)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if err := os.MkdirAll(filepath.Join(dir, "ktstr-vmm"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(dir, "ktstr-vmm", "exporter.sock")
	if got := exporter.Find(); got == want {
		t.Error("there never was one, and it is found")
	}
	e, err := exporter.New(exporter.Config{Socket: want, State: filepath.Join(dir, "state"), Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if got := exporter.Find(); got != want {
		t.Errorf("it is at %q, not %q", got, want)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if got := exporter.Find(); got != want {
		t.Errorf("it is away, and at %q, not %q", got, want)
	}
}

// scrape returns what a scraper of this name gets.
func scrape(t *testing.T, e *exporter.Exporter, name string) map[string]*dto.MetricFamily {
	t.Helper()
	return answer(t, e, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics?scraper="+name, nil))
}

func answer(t *testing.T, e *exporter.Exporter, r *http.Request) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	e.ServeMetrics(w, r)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatal(w.Code, err)
	}
	return families
}

// drops is the counter that these tests count with.
func drops(families map[string]*dto.MetricFamily) (sum float64) {
	for _, m := range families["ktstr_vmm_ring_drops_total"].GetMetric() {
		sum += m.GetCounter().GetValue()
	}
	return sum
}

func outcomes(families map[string]*dto.MetricFamily) map[string]float64 {
	counts := map[string]float64{}
	for _, m := range families["ktstr_vmm_runs_total"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "outcome" {
				counts[l.GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	return counts
}

// start starts a run that has dropped so many messages.
func start(dir, id string, n float64) *exporter.Client {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "ktstr_vmm_ring_drops_total", Help: "H."})
	c.Add(n)
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	return exporter.Start(socket(dir), exporter.Run{ID: id, Started: time.Now(), Labels: tally.Labels{Suite: "s"}}, r)
}

func end(t *testing.T, c *exporter.Client) {
	t.Helper()
	if err := c.End(exporter.End{Outcome: "exited", Duration: time.Second}); err != nil {
		t.Error(err)
	}
}

// until waits for what is to come.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal(what)
		}
	}
}

// A scraper with a deadline may give up an answer that was sent, and then closes the connection. It sees a series at 0
// until it asks again over the same one. Where connections say nothing it does so three times.
func TestScraperGivesUp(t *testing.T) {
	dir := folder(t)
	e := open(t, dir)
	defer func() { _ = e.Close() }()
	want := func(conn string, major int, n float64) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics?scraper="+fmt.Sprint(major), nil)
		r.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", "1")
		r.RemoteAddr, r.ProtoMajor = conn, major
		if got := drops(answer(t, e, r)); got != n {
			t.Errorf("%s: %v, want %v", conn, got, n)
		}
	}
	want("127.0.0.1:1", 1, 0)
	end(t, start(dir, "1", 5))
	want("127.0.0.1:1", 1, 0)
	want("127.0.0.1:2", 1, 0)
	want("127.0.0.1:2", 1, 5)
	want("127.0.0.1:3", 1, 5)
	for range 3 {
		want("127.0.0.1:4", 2, 0)
	}
	want("127.0.0.1:4", 2, 5)
	for i := range 4 {
		want(fmt.Sprintf("127.0.0.2:%d", i), 1, map[bool]float64{true: 5}[i == 3])
	}
}

// Each scraper sees a new series at 0 first, however rarely it comes, and no scraper sees one fall, not when the
// exporter is started again either. One that comes later than others sees what it can't know as it is.
func TestScrapers(t *testing.T) {
	dir := folder(t)
	e := open(t, dir)
	scrape(t, e, "a")
	end(t, start(dir, "1", 5))
	for range 2 {
		end(t, start(dir, "1", 5)) // said again
	}
	want := func(who string, n float64) {
		t.Helper()
		if got := drops(scrape(t, e, who)); got != n {
			t.Errorf("%s: %v, want %v", who, got, n)
		}
	}
	want("a", 0)
	want("a", 5)
	want("b", 0) // the first time, but the series is young
	end(t, start(dir, "2", 2))
	want("b", 7)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	end(t, start(dir, "3", 1)) // nobody is there: spooled
	e = open(t, dir)
	defer func() { _ = e.Close() }()
	want("a", 8)
	want("b", 8)
	want("c", 8) // history
	if got := outcomes(scrape(t, e, "a")); got["exited"] != 3 {
		t.Errorf("%v", got)
	}
}

// What is shown has the form that promlint asks for, and live runs are gauges.
func TestExposition(t *testing.T) {
	dir := folder(t)
	e := open(t, dir)
	defer func() { _ = e.Close() }()
	run := start(dir, "1", 5)
	until(t, "no run is seen", func() bool {
		m := scrape(t, e, "a")["ktstr_vmm_runs_running"].GetMetric()
		return len(m) == 1 && m[0].GetGauge().GetValue() == 1
	})
	w := httptest.NewRecorder()
	e.ServeMetrics(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	problems, err := promlint.New(w.Body).Lint()
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	end(t, run)
	if got := scrape(t, e, "a")["ktstr_vmm_runs_running"].GetMetric()[0].GetGauge().GetValue(); got != 0 {
		t.Errorf("%v runs go on", got)
	}
}

// There is one exporter for a socket and for a state, and it says who has it. One that can't go on with its state
// leaves it.
func TestRefusals(t *testing.T) {
	dir := folder(t)
	e := open(t, dir)
	for _, c := range []exporter.Config{
		{Socket: socket(dir), State: filepath.Join(dir, "other")},
		{Socket: filepath.Join(dir, "other", "s"), State: filepath.Join(dir, "state")},
	} {
		_, err := exporter.New(c)
		if !errors.Is(err, exporter.ErrRunning) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
			t.Error(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	if err := os.WriteFile(state, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := exporter.New(exporter.Config{Socket: socket(dir), State: state})
	if b, _ := os.ReadFile(state); !errors.Is(err, exporter.ErrState) || string(b) != "{}" {
		t.Errorf("%v, and the file has %q", err, b)
	}
	if err := os.Chmod(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := exporter.New(exporter.Config{Socket: socket(dir), State: state}); err == nil ||
		!strings.Contains(err.Error(), "chmod 700") {
		t.Error(err)
	}
}

// Connections that stall or send anything, and files that are no run's, hurt nobody.
func TestHostile(t *testing.T) {
	dir := folder(t)
	e := open(t, dir)
	defer func() { _ = e.Close() }()
	garbage := [][]byte{nil, {1}, binary.BigEndian.AppendUint32(nil, 1<<31), []byte("\x00\x00\x00\x05hello"),
		[]byte("\x00\x00\x00\x10{\"version\":1}\n\xff\xff\xff"), []byte("GET / HTTP/1.1\r\n\r\n")}
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 500 {
		conn, err := net.Dial("unix", socket(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(garbage[i%len(garbage)]) // may be refused already
	}
	for name, text := range map[string]string{"bad": "x", "huge": strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(filepath.Join(dir, "run", "spool", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "run", "spool", "link")); err != nil {
		t.Fatal(err)
	}
	end(t, start(dir, "1", 5))
	if got := outcomes(scrape(t, e, "a")); got["exited"] != 0 || len(got) != 1 { // new: at 0
		t.Errorf("%v", got)
	}
	if got := drops(scrape(t, e, "a")); got != 5 {
		t.Errorf("%v drops", got)
	}
	until(t, "the spool folder is not empty", func() bool {
		entries, err := os.ReadDir(filepath.Join(dir, "run", "spool"))
		return err == nil && len(entries) == 0
	})
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d bytes more", grown)
	}
}

// Who stalls the exporter's socket holds up no run.
func TestStalledExporter(t *testing.T) {
	dir := folder(t)
	if err := os.MkdirAll(filepath.Join(dir, "run", "spool"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket(dir)) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	run := start(dir, "1", 5)
	began := time.Now()
	end(t, run)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
	_ = l.Close()
	e := open(t, dir)
	defer func() { _ = e.Close() }()
	scrape(t, e, "a")
	if got := drops(scrape(t, e, "a")); got != 5 {
		t.Errorf("%v drops", got)
	}
}
