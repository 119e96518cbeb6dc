package monitor_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hangLimit = 30 * time.Second

// bench is a ring in host memory with its writer, and a monitor that reads it.
type bench struct {
	t       *testing.T
	mem     []byte
	writer  *shm.Writer
	monitor *monitor.Monitor
	mux     *monitor.Mux
	bell    chan struct{} // without a place for a ring that is not heard

	mu     sync.Mutex
	faults []string
}

func newBench(t *testing.T, size int, poll time.Duration) *bench {
	t.Helper()
	b := &bench{t: t, mem: make([]byte, size), mux: monitor.NewMux(), bell: make(chan struct{})}
	m, err := guestmem.New(guestmem.Region{Mem: b.mem})
	if err != nil {
		t.Fatal(err)
	}
	region, err := m.Window(0, uint64(size))
	if err != nil {
		t.Fatal(err)
	}
	if err := shm.Init(region); err != nil {
		t.Fatal(err)
	}
	if b.writer, err = shm.NewWriter(region); err != nil {
		t.Fatal(err)
	}
	reader, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	onFault := func(kind string, detail error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.faults = append(b.faults, fmt.Sprintf("%s: %v", kind, detail))
	}
	b.monitor = monitor.New(monitor.Config{Reader: reader, Mux: b.mux, Poll: poll, Bell: b.bell, OnFault: onFault})
	return b
}

func (b *bench) start() {
	b.t.Helper()
	if err := b.monitor.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(b.monitor.Stop)
}

func (b *bench) write(typ shm.Type, payload string) {
	b.t.Helper()
	if err := b.writer.Write(typ, []byte(payload)); err != nil {
		b.t.Fatal(err)
	}
}

func TestHandlersGetTheirMessages(t *testing.T) {
	b := newBench(t, 4096, time.Hour) // drains at Sync alone
	var log []string
	note := func(name string) func(shm.Message) monitor.Verdict {
		return func(m shm.Message) monitor.Verdict {
			log = append(log, fmt.Sprintf("%s %v %q", name, m.Type, m.Payload))
			return monitor.Continue
		}
	}
	b.mux.HandleFunc(shm.TestResult, note("first"))
	b.mux.HandleFunc(shm.TestResult, note("second"))
	b.mux.HandleFunc(shm.Exit, note("exit"))
	b.mux.HandleAll(monitor.HandlerFunc(note("all")))
	b.start()
	b.write(shm.TestResult, "a")
	b.write(shm.Crash, "b")
	<-b.monitor.Sync()
	b.write(shm.Exit, "c")
	b.mem[40+16+1+16+1+16] ^= 1 // damaged: for those who take all only
	<-b.monitor.Sync()
	b.monitor.Stop()
	want := []string{`all TEST "a"`, `first TEST "a"`, `second TEST "a"`, `all CRSH "b"`, `all EXIT "b"`}
	if !slices.Equal(log, want) {
		t.Errorf("got  %q\nwant %q", log, want)
	}
	if s := b.monitor.Stats(); s.CRCErrors != 1 || s.Messages != 3 || s.ByType["EXIT"] != 1 {
		t.Errorf("%+v", s)
	}
}

// A guest that can't be stopped and writes without end does not hold up the end.
func TestFinishWhileTheGuestWrites(t *testing.T) {
	const before = 1 << 17 // more than are read in one go
	b := newBench(t, 4<<20, time.Hour)
	b.mux.HandleFunc(shm.Stdout, func(shm.Message) monitor.Verdict {
		_ = b.writer.Write(shm.Stdout, []byte("more")) // there may be no room
		return monitor.Continue
	})
	for range before {
		b.write(shm.Stdout, "more")
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	finished := make(chan struct{})
	go func() {
		b.monitor.Finish(over)
		close(finished)
	}()
	select {
	case <-finished:
	case <-time.After(hangLimit):
		t.Fatal("it goes on for as long as the guest writes")
	}
	if n := b.monitor.Stats().Messages; n < before {
		t.Errorf("%d messages were read of those that there were", n)
	}
}

func TestVerdict(t *testing.T) {
	b := newBench(t, 4096, time.Millisecond)
	stop := errors.New("seen enough")
	seen := 0
	b.mux.HandleFunc(shm.Exit, func(shm.Message) monitor.Verdict { seen++; return monitor.Stop(stop) })
	b.mux.HandleFunc(shm.Exit, func(shm.Message) monitor.Verdict { return monitor.Stop(errors.New("later")) })
	b.start()
	b.write(shm.Exit, "")
	select {
	case err := <-b.monitor.Verdict():
		if err != stop {
			t.Errorf("verdict %v", err)
		}
	case <-time.After(hangLimit):
		t.Fatal("no verdict")
	}
	// The loop goes on: whoever runs the guest decides when it ends.
	b.write(shm.Exit, "")
	b.monitor.Stop()
	b.write(shm.Exit, "")
	b.monitor.Finish(t.Context())
	if seen != 3 {
		t.Errorf("%d of 3 messages handled", seen)
	}
}

func TestRejectIsAFault(t *testing.T) {
	b := newBench(t, 4096, time.Millisecond)
	b.mux.HandleFunc(shm.Exit, func(shm.Message) monitor.Verdict { return monitor.Reject(errors.New("five bytes")) })
	b.start()
	b.write(shm.Exit, "12345")
	<-b.monitor.Sync()
	b.monitor.Stop()
	if s := b.monitor.Stats(); s.Faults[monitor.BadPayload] != 1 || s.FaultCount() != 1 {
		t.Errorf("%+v", s)
	}
	if want := []string{"bad_payload: five bytes"}; !slices.Equal(b.faults, want) {
		t.Errorf("%q", b.faults)
	}
}

func TestFaultsAreCounted(t *testing.T) {
	b := newBench(t, 4096, time.Millisecond)
	b.start()
	<-b.monitor.Sync()
	atomicStore(t, b, 16, 1<<40) // write_ptr
	<-b.monitor.Sync()
	b.monitor.Stop()
	s := b.monitor.Stats()
	if s.Faults["write_ptr_ahead"] != 1 || s.Lost != 4056 || len(b.faults) != 1 {
		t.Errorf("%+v, %q", s, b.faults)
	}
}

func atomicStore(t *testing.T, b *bench, off guestmem.Addr, v uint64) {
	t.Helper()
	m, err := guestmem.New(guestmem.Region{Mem: b.mem})
	if err != nil {
		t.Fatal(err)
	}
	w, err := m.Uint64(off)
	if err != nil {
		t.Fatal(err)
	}
	w.Store(v)
}

// A writer that never rests, on rings of all sizes: the loop keeps up, and still stops when asked.
func TestBusyWriter(t *testing.T) {
	for _, size := range []int{200, 8 << 10, 1 << 20} {
		b := newBench(t, size, 10*time.Millisecond)
		var next atomic.Uint64
		b.mux.HandleFunc(shm.RawOutput, func(m shm.Message) monitor.Verdict {
			if i := binary.LittleEndian.Uint64(m.Payload); i != next.Load() {
				t.Errorf("got %d, want %d", i, next.Load())
			}
			next.Add(1)
			return monitor.Continue
		})
		b.start()
		count := uint64(20_000)
		if size < 1<<10 {
			count = 2_000 // each waits for the reader, and a busy host lets that sleep
		}
		var payload [100]byte
		deadline := time.Now().Add(hangLimit)
		for i := uint64(0); i < count; {
			binary.LittleEndian.PutUint64(payload[:], i)
			if err := b.writer.Write(shm.RawOutput, payload[:]); err == nil {
				i++
			} else if time.Now().After(deadline) {
				t.Fatalf("ring of %d: only %d of %d after %v", size, i, count, hangLimit)
			}
		}
		b.monitor.Stop()
		b.monitor.Finish(t.Context())
		if next.Load() != count {
			t.Errorf("ring of %d: %d of %d arrived", size, next.Load(), count)
		}
	}
}

func TestSyncAfterStopReturns(t *testing.T) {
	b := newBench(t, 4096, time.Hour)
	b.start()
	b.write(shm.Exit, "")
	<-b.monitor.Sync() // does not wait for the hour
	if n := b.monitor.Stats().Messages; n != 1 {
		t.Errorf("%d messages", n)
	}
	b.monitor.Stop()
	for range 3 {
		<-b.monitor.Sync()
	}
	b.monitor.Stop()
}

// burst is how often the bell is heard at once.
const burst = 16

// The bell makes the monitor drain when no poll will, so and so many times; then it waits for the poll, whose tick
// pays for the next ring.
func TestBell(t *testing.T) {
	b := newBench(t, 4096, time.Hour)
	seen := make(chan string)
	b.mux.HandleAll(monitor.HandlerFunc(func(m shm.Message) monitor.Verdict {
		seen <- string(m.Payload)
		return monitor.Continue
	}))
	b.start()
	ring := func(within time.Duration) bool {
		select {
		case b.bell <- struct{}{}:
			return true
		case <-time.After(within):
			return false
		}
	}
	for i := range burst {
		text := fmt.Sprint("message ", i)
		b.write(shm.RawOutput, text)
		if !ring(hangLimit) {
			t.Fatalf("ring %d was not heard", i)
		}
		select {
		case got := <-seen:
			if got != text {
				t.Errorf("%q, want %q", got, text)
			}
		case <-time.After(hangLimit):
			t.Fatalf("ring %d: nobody drained", i)
		}
	}
	if ring(50 * time.Millisecond) {
		t.Error("a ring was heard that nobody paid for")
	}
	b.monitor.Stop()
	if n := b.monitor.Stats().BellDrains; n != burst {
		t.Errorf("%d drains, want %d", n, burst)
	}
}

// A bell that rings without end costs no more drains than the poll, and stops nobody.
func TestBellWithoutEnd(t *testing.T) {
	b := newBench(t, 4096, time.Millisecond)
	b.start()
	const rings = 10 * burst
	for late := time.After(hangLimit); b.monitor.Stats().BellDrains < rings; {
		select {
		case b.bell <- struct{}{}:
		case <-late:
			t.Fatalf("%d of %d rings were heard in %v", b.monitor.Stats().BellDrains, rings, hangLimit)
		}
	}
	b.monitor.Stop()
	var drains, ticks uint64
	for name, n := range histograms(t, b.monitor) {
		switch name {
		case "ktstr_vmm_drain_duration_seconds":
			drains = n
		case "ktstr_vmm_poll_late_seconds":
			ticks = n
		}
	}
	if heard := b.monitor.Stats().BellDrains; heard > burst+ticks || drains > heard+ticks {
		t.Errorf("%d rings were drained for, and %d drains in all, in %d ticks", heard, drains, ticks)
	}
}

// histograms are how many samples each of a collector's has.
func histograms(t *testing.T, c prometheus.Collector) map[string]uint64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]uint64{}
	for _, f := range families {
		if h := f.Metric[0].Histogram; h != nil {
			counts[f.GetName()] = h.GetSampleCount()
		}
	}
	return counts
}

func TestMetrics(t *testing.T) {
	b := newBench(t, 4096, time.Millisecond)
	b.start()
	b.write(shm.Exit, "abcd")
	b.write(0x42, "")
	atomicStore(t, b, 32, 5) // drops
	b.bell <- struct{}{}
	<-b.monitor.Sync()
	b.monitor.Stop()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(b.monitor); err != nil {
		t.Fatal(err)
	}
	want := `
# HELP ktstr_vmm_doorbell_drains_total Times that the ring was drained because the guest rang its doorbell.
# TYPE ktstr_vmm_doorbell_drains_total counter
ktstr_vmm_doorbell_drains_total 1
# HELP ktstr_vmm_ring_bytes_total Bytes of messages read from the ring, with their headers.
# TYPE ktstr_vmm_ring_bytes_total counter
ktstr_vmm_ring_bytes_total 36
# HELP ktstr_vmm_ring_capacity_bytes Bytes of data that the ring holds.
# TYPE ktstr_vmm_ring_capacity_bytes gauge
ktstr_vmm_ring_capacity_bytes 4056
# HELP ktstr_vmm_ring_drops_total Messages that the guest says it had no room for.
# TYPE ktstr_vmm_ring_drops_total counter
ktstr_vmm_ring_drops_total 5
# HELP ktstr_vmm_ring_messages_total Messages read from the ring, by type.
# TYPE ktstr_vmm_ring_messages_total counter
ktstr_vmm_ring_messages_total{type="CRSH"} 0
ktstr_vmm_ring_messages_total{type="EXIT"} 1
ktstr_vmm_ring_messages_total{type="PMET"} 0
ktstr_vmm_ring_messages_total{type="RAWO"} 0
ktstr_vmm_ring_messages_total{type="SCDX"} 0
ktstr_vmm_ring_messages_total{type="SCEN"} 0
ktstr_vmm_ring_messages_total{type="SCST"} 0
ktstr_vmm_ring_messages_total{type="STDE"} 0
ktstr_vmm_ring_messages_total{type="STDO"} 0
ktstr_vmm_ring_messages_total{type="STIM"} 0
ktstr_vmm_ring_messages_total{type="SXDP"} 0
ktstr_vmm_ring_messages_total{type="SXOU"} 0
ktstr_vmm_ring_messages_total{type="SXST"} 0
ktstr_vmm_ring_messages_total{type="TEST"} 0
ktstr_vmm_ring_messages_total{type="unknown"} 1
`
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), "ktstr_vmm_doorbell_drains_total",
		"ktstr_vmm_ring_bytes_total", "ktstr_vmm_ring_capacity_bytes",
		"ktstr_vmm_ring_drops_total", "ktstr_vmm_ring_messages_total"); err != nil {
		t.Error(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, f := range families {
		for _, m := range f.Metric {
			switch f.GetName() {
			case "ktstr_vmm_ring_faults_total":
				kinds[m.Label[0].GetValue()] = true
			case "ktstr_vmm_drain_duration_seconds", "ktstr_vmm_poll_late_seconds":
				if f.GetName() == "ktstr_vmm_drain_duration_seconds" && m.Histogram.GetSampleCount() == 0 {
					t.Errorf("%s is empty", f.GetName())
				}
			}
		}
	}
	wantKinds := map[string]bool{"write_ptr_behind": true, "write_ptr_ahead": true, "bad_length": true, "incomplete": true,
		"header_changed": true, "bad_payload": true}
	if !maps.Equal(kinds, wantKinds) {
		t.Errorf("kinds of faults: %v", kinds)
	}
}

// A message that a handler has no room for stays in the ring with those behind it, and comes again, also to
// handlers that had it before; when the run is over for good it is counted, and what is behind it is read.
func TestNotNow(t *testing.T) {
	b := newBench(t, 4096, time.Hour) // drains at Sync alone
	room := 1
	var log []string
	b.mux.HandleAll(monitor.HandlerFunc(func(m shm.Message) monitor.Verdict {
		if m.Type == shm.Stdout {
			if room == 0 {
				return monitor.NotNow
			}
			room--
		}
		log = append(log, string(m.Payload))
		return monitor.Continue
	}))
	b.start()
	for _, text := range []string{"a", "b", "c"} {
		b.write(shm.Stdout, text)
	}
	b.write(shm.RawOutput, "d")
	<-b.monitor.Sync()
	if s := b.monitor.Stats(); !slices.Equal(log, []string{"a"}) || s.Messages != 1 || s.ByType["STDO"] != 1 {
		t.Errorf("%q, %+v", log, s)
	}
	<-b.monitor.Sync()
	room = 1
	<-b.monitor.Sync()
	if !slices.Equal(log, []string{"a", "b"}) {
		t.Errorf("%q", log)
	}
	b.monitor.Stop()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	b.monitor.Finish(over)
	if s := b.monitor.Stats(); !slices.Equal(log, []string{"a", "b", "d"}) || s.Omitted != 1 ||
		s.Messages != 4 || s.ByType["STDO"] != 3 {
		t.Errorf("%q, %+v", log, s)
	}
}
