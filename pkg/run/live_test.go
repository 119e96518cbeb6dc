package run_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// live starts a run and returns the handle on it, and what its result comes from.
func live(t *testing.T, cfg run.Config) (*run.Live, <-chan *run.Result) {
	t.Helper()
	handles, results := make(chan *run.Live, 1), make(chan *run.Result, 1)
	cfg.OnLive = func(l *run.Live) { handles <- l }
	go func() { results <- run.Run(t.Context(), cfg) }()
	select {
	case l := <-handles:
		return l, results
	case <-time.After(hangLimit):
		t.Fatal("there is no handle")
		return nil, nil
	}
}

// await waits for something to become true.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(hangLimit); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// A run can be looked at while it goes on: how far it is, its messages, its console, its ring.
func TestLive(t *testing.T) {
	step := make(chan struct{})
	var f *fake
	f = newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
		stimulus := shm.StimulusEvent{StepIndex: 7}.Encode()
		_ = w.TryWrite(shm.ScenarioStart, nil)
		_ = w.TryWrite(shm.Stimulus, stimulus[:])
		fmt.Fprint(f.console, "hello\nworld\n")
		<-step
		_ = w.TryWrite(shm.Stdout, []byte("output"))
		_ = w.TryWrite(shm.TestResult, bytes.Repeat([]byte("x"), 1000))
		<-stopped
	})
	cfg := f.config()
	cfg.ID, cfg.Name = "an ID", "a name"
	l, results := live(t, cfg)
	await(t, "the stimulus", func() bool { return l.Status().Kept == 2 })
	s := l.Status()
	if s.ID != "an ID" || s.Name != "a name" || s.Phase != run.PhaseCommand || s.LastStimulus == nil ||
		s.LastStimulus.StepIndex != 7 || s.Ring.Messages != 2 || s.ConsoleBytes != 12 || s.Timeout != cfg.Timeout {
		t.Errorf("%+v", s)
	}
	if text, at := l.Console(6); string(text) != "world\n" || at != 6 {
		t.Errorf("console %q at %d", text, at)
	}
	follower := l.Follow(1)
	close(step)
	var seen []run.Message
	await(t, "all messages", func() bool {
		ms, omitted := follower.Next()
		seen = append(seen, ms...)
		return len(seen) == 3 && omitted == 0
	})
	follower.Close()
	if seen[0].N != 1 || seen[0].Type != shm.Stimulus || seen[1].N != -1 || string(seen[1].Payload) != "output" ||
		seen[2].N != 2 || seen[2].Size != 1000 || len(seen[2].Payload) != 512 {
		t.Errorf("%+v", seen)
	}
	if ms := l.Messages(2); len(ms) != 1 || ms[0].Type != shm.TestResult || len(l.Messages(-1)) != 3 ||
		len(l.Messages(3)) != 0 {
		t.Errorf("%+v", ms)
	}
	image := make([]byte, l.RingSize())
	const data = shm.HeaderSize // to the race detector, a copy of a word that is written atomically is a race
	if n, err := l.ReadRing(image, data); uint64(n) != l.RingSize()-data || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n, err := l.ReadRing(image, 1<<40); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if !bytes.Contains(image, []byte("output")) {
		t.Error("the ring's image does not have what is in the ring")
	}
	if err := l.Stop(true); err != nil {
		t.Error(err)
	}
	r := <-results
	if r.Outcome != run.Interrupted || r.ExitCode != 143 || !strings.Contains(r.Reason, "ctl stop") || l.Result() != r {
		t.Errorf("%+v", r)
	}
	if string(r.Stdout.Tail) != "output" || r.Stdout.Bytes != 6 || r.Stderr.Bytes != 0 || len(r.ConsoleTimes) == 0 ||
		r.ConsoleTimes[0].Line != 0 {
		t.Errorf("%+v", r)
	}
	var names, kinds string
	for _, p := range r.Phases {
		names += string(p.Phase) + " "
	}
	for _, e := range r.Events {
		kinds += e.Kind + " "
	}
	if names != "boot command end " || kinds != "SCST stop " {
		t.Errorf("phases %s, events %s", names, kinds)
	}
	<-l.Done()
	for what, err := range map[string]error{
		"dump": l.RequestDump("x"), "stall": l.RequestStall(), "signal": l.Signal(shm.SlotHost, 1), "stop": l.Stop(false),
	} {
		if !errors.Is(err, run.ErrOver) {
			t.Errorf("%s of a run that is over: %v", what, err)
		}
	}
	if _, err := l.ReadRing(image, 0); !errors.Is(err, run.ErrOver) {
		t.Errorf("the ring of a run that is over: %v", err)
	}
	if s := l.Status(); s.Phase != run.PhaseEnd || s.Elapsed != r.Duration {
		t.Errorf("%+v", s)
	}
}

// What a run is asked for reaches the guest, and its report. A second request to stop changes nothing.
func TestLiveRequests(t *testing.T) {
	control := make(chan shm.Control, 1)
	var f *fake
	f = newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
		c, err := shm.NewControl(f.ring)
		if err != nil {
			t.Error(err)
		}
		control <- c
		for v := byte(0); v != shm.SignalShutdown; time.Sleep(time.Millisecond) {
			v, _ = c.Read(shm.SlotHost)
		}
		code := shm.EncodeCode(5)
		_ = w.TryWrite(shm.Exit, code[:])
	})
	cfg := f.config()
	cfg.Grace = hangLimit
	l, results := live(t, cfg)
	c := <-control
	if err := errors.Join(l.RequestDump("somebody asked"), l.RequestStall(), l.Signal(shm.SlotGuest, 9)); err != nil {
		t.Fatal(err)
	}
	if err := l.Signal(2, 1); !errors.Is(err, shm.ErrSlot) {
		t.Errorf("slot 2: %v", err)
	}
	await(t, "the dump", c.TakeDump)
	await(t, "the stall", c.TakeStall)
	if v, err := c.Read(shm.SlotGuest); v != 9 || err != nil {
		t.Errorf("slot 1 has %d, %v", v, err)
	}
	if err := errors.Join(l.Stop(false), l.Stop(false)); err != nil {
		t.Fatal(err)
	}
	r := <-results
	if r.Outcome != run.Interrupted || r.ExitCode != 143 || r.GuestExitCode == nil || *r.GuestExitCode != 5 ||
		len(r.DumpRequests) != 1 || r.DumpRequests[0].Why != "somebody asked" {
		t.Errorf("%+v", r)
	}
}

// Whoever looks at a run that ends at that moment is told so, and never finds its memory gone.
func TestLiveAtTheEnd(t *testing.T) {
	for range 20 {
		l, results := live(t, newFake(t, sends(false, coded(shm.Exit, 0))).config())
		var lookers sync.WaitGroup
		for range 4 {
			lookers.Go(func() {
				for p := make([]byte, 64); ; {
					l.Status()
					l.Messages(0)
					_ = l.RequestStall()
					if _, err := l.ReadRing(p, fakeRing/2); err != nil { // where nothing is written
						return
					}
				}
			})
		}
		<-results
		lookers.Wait()
	}
}

// A flood costs those who follow it messages, not the run, and those that the run keeps are not among them.
func TestFollowAFlood(t *testing.T) {
	const stimuli = 3000
	f := newFakeOf(t, 1<<20, func(w *shm.Writer, stopped <-chan struct{}) {
		for range stimuli {
			event := shm.StimulusEvent{}.Encode()
			_ = w.WriteWait(t.Context(), shm.Stimulus, event[:])
			for range 10 {
				_ = w.WriteWait(t.Context(), shm.RawOutput, []byte("flood"))
			}
		}
		<-stopped
	})
	l, results := live(t, f.config())
	follower := l.Follow(0)
	defer follower.Close()
	kept, bulk := 0, uint64(0)
	await(t, "all messages", func() bool {
		ms, omitted := follower.Next()
		bulk += omitted
		for _, m := range ms {
			if m.N < 0 {
				bulk++
			} else if m.N != kept {
				t.Fatalf("message %d comes after %d", m.N, kept-1)
			} else {
				kept++
			}
		}
		return kept == stimuli && l.Status().Ring.Messages == 11*stimuli && bulk > 9*stimuli
	})
	if err := l.Stop(true); err != nil {
		t.Error(err)
	}
	if r := <-results; len(r.Stimuli) != stimuli {
		t.Errorf("%d stimuli", len(r.Stimuli))
	}
}

// late looks at the guest's memory when it is given back.
type late struct {
	*fake
	live *run.Live
	err  error
}

func (m *late) Close() error {
	_, m.err = m.live.ReadRing(make([]byte, 1), 0)
	return m.fake.Close()
}

// Nobody reads a guest's memory that is given back, also where the guest never ran.
func TestLiveOfAMachineThatDoesNotStart(t *testing.T) {
	for _, startErr := range []error{nil, errors.New("it does not start")} {
		f := newFake(t, sends(false, coded(shm.Exit, 0)))
		f.startErr = startErr
		m, cfg := &late{fake: f}, f.config()
		cfg.OnLive = func(l *run.Live) { m.live = l }
		cfg.NewMachine = func(vm.Config) (run.Machine, error) { return m, nil }
		if r := run.Run(t.Context(), cfg); !errors.Is(r.Err, startErr) || !errors.Is(m.err, run.ErrOver) {
			t.Errorf("%v, and the ring could be read when it was given back: %v", r.Err, m.err)
		}
	}
}

// All of a large ring can be read, from any place and with any buffer.
func TestReadRing(t *testing.T) {
	const size = 1 << 20
	f := newFakeOf(t, size, func(_ *shm.Writer, stopped <-chan struct{}) { <-stopped })
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i >> 8)
	}
	if err := f.ring.Write(want, 0); err != nil {
		t.Fatal(err)
	}
	l, results := live(t, f.config())
	for _, off := range []uint64{shm.HeaderSize, 300 << 10, size - 1, size, 1 << 63, ^uint64(0)} {
		for _, n := range []int{0, 1, 256 << 10, 300<<10 + 1, size + 1} {
			p := make([]byte, n)
			got, err := l.ReadRing(p, off)
			there := want[min(off, size):]
			there = there[:min(n, len(there))]
			if !bytes.Equal(p[:got], there) || (err == nil) != (got == n) || err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("%d bytes from %d: %d, %v", n, off, got, err)
			}
		}
	}
	if err := l.Stop(true); err != nil {
		t.Error(err)
	}
	<-results
}
