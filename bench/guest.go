package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func (t target) scenario(words string) run.Config {
	demo, _ := guest.Demo("x86_64") // which there is
	return run.Config{
		VM: vm.Config{
			Backend: t.backend,
			Kernel:  x86.ELF{File: bytes.NewReader(demo)},
			Cmdline: "demo.scenario=" + words,
		},
		Timeout: 5 * time.Minute,
		Grace:   -1,
	}
}

// floods measures how fast the embedded guest's messages are read. The goals are the emulator's, which
// sets the pace there: KVM's guests write as fast as the host reads.
func (t target) floods() error {
	const rounds = 5
	small, volume := 1_000_000, 4<<30
	if !t.isKVM() {
		small, volume = 2_000_000, 256<<20
	}
	for _, f := range []struct {
		count, size  int
		messages, mb float64 // goals, a second
	}{
		{count: small, size: 24, messages: 1e6},
		{count: volume >> 12, size: 4 << 10, mb: 200},
		{count: volume >> 16, size: 64 << 10},
	} {
		all, err := repeat(rounds, func() (time.Duration, error) { return t.flood(f.count, f.size) })
		if err != nil {
			return err
		}
		median, _ := spread(all)
		messages := float64(f.count) / median.Seconds()
		mb := messages * float64(f.size) / 1e6
		name := fmt.Sprintf("%d messages of %d bytes", f.count, f.size)
		value := fmt.Sprintf("%.0f messages/s, %.0f MB/s", messages, mb)
		switch hasGoals := t.version >= newQEMU; {
		case hasGoals && f.messages > 0:
			t.goal(name, value, fmt.Sprintf("≥ %.0f M/s", f.messages/1e6), messages >= f.messages)
		case hasGoals && f.mb > 0:
			t.goal(name, value, fmt.Sprintf("≥ %.0f MB/s", f.mb), mb >= f.mb)
		default:
			t.figure(name, value)
		}
	}
	return nil
}

// repeat measures something some times.
func repeat(rounds int, measure func() (time.Duration, error)) (all []time.Duration, err error) {
	for range rounds {
		d, err := measure()
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// flood measures from the guest's start until its last message, EXIT, has been read.
func (t target) flood(count, size int) (time.Duration, error) {
	cfg := t.scenario(fmt.Sprintf("flood demo.count=%d demo.size=%d", count, size))
	m := watch(&cfg)
	var last time.Time
	cfg.Handlers = func(x *monitor.Mux) {
		x.HandleFunc(shm.Exit, func(shm.Message) monitor.Verdict {
			last = time.Now()
			return monitor.Continue
		})
	}
	r := run.Run(context.Background(), cfg)
	if r.Outcome != run.Exited || r.Ring.ByType["RAWO"] != uint64(count) || r.Ring.CRCErrors+r.Ring.Drops != 0 {
		return 0, fmt.Errorf("flood: %s, %s, %+v", r.Outcome, r.Reason, r.Ring)
	}
	// An emulator that is not up yet runs nothing.
	start := r.StartedAt.Add(r.FirstExit)
	if m.started.After(start) {
		start = m.started
	}
	return last.Sub(start), nil
}

// watched is a machine that notes when it was started and when it ended.
type watched struct {
	run.Machine
	started time.Time
	ended   chan time.Time
}

// watch makes a run's machine a watched one.
func watch(cfg *run.Config) *watched {
	w := &watched{ended: make(chan time.Time, 1)}
	cfg.NewMachine = func(c vm.Config) (run.Machine, error) {
		m, err := vm.New(c)
		w.Machine = m
		return w, err
	}
	return w
}

func (w *watched) Start() error {
	go func() {
		<-w.Done()
		w.ended <- time.Now()
	}()
	w.started = time.Now()
	return w.Machine.Start()
}

// stamp notes when the guest first wrote to its console.
type stamp struct{ at time.Time }

func (s *stamp) Write(p []byte) (int, error) {
	if s.at.IsZero() {
		s.at = time.Now()
	}
	return len(p), nil
}

// schedulerExit measures from the guest's last act before it writes SCDX, a line on its console,
// until the machine has ended.
func (t target) schedulerExit() (time.Duration, error) {
	cfg := t.scenario("sched-exit")
	console := &stamp{}
	cfg.VM.Console = console
	m := watch(&cfg)
	if r := run.Run(context.Background(), cfg); r.Outcome != run.SchedulerGone {
		return 0, fmt.Errorf("sched-exit: %s, %s", r.Outcome, r.Reason)
	}
	return (<-m.ended).Sub(console.at), nil
}

// ringed is a machine with a ring, to be started and closed.
func ringed(cfg vm.Config) (*vm.Machine, *guestmem.Window, error) {
	layout, err := x86.Board{}.Layout(cfg.Memory, cfg.Reserved)
	if err != nil {
		return nil, nil, err
	}
	ring := layout.Reserved
	cfg.Cmdline = shm.Params{Base: uint64(ring.Base), Size: ring.Size}.String() + " " + cfg.Cmdline
	m, err := vm.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	region, err := m.Memory().Window(ring.Base, ring.Size)
	if err == nil {
		err = shm.Init(region)
	}
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, region, nil
}

// stopLatency measures from Stop until the machine has ended.
func (t target) stopLatency(words string) (took time.Duration, err error) {
	m, _, err := ringed(t.scenario(words).VM)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Start(); err != nil {
		return 0, err
	}
	if err := intoTheGuest(m); err != nil {
		return 0, err
	}
	measured := errors.New("measured")
	start := time.Now()
	m.Stop(measured)
	if reason := m.Wait(); reason != measured {
		return 0, fmt.Errorf("%s ended before it was stopped: %w", words, reason)
	}
	return time.Since(start), nil
}

// intoTheGuest waits until it runs, and then until it is where it stays.
func intoTheGuest(m *vm.Machine) error {
	const limit = 10 * time.Second
	for start := time.Now(); m.FirstExit().IsZero(); time.Sleep(time.Millisecond) {
		if time.Since(start) > limit {
			return fmt.Errorf("the guest does not run %v after its start", limit)
		}
	}
	time.Sleep(20 * time.Millisecond)
	return nil
}

func (t target) stops() error {
	rounds := 40
	if !t.isKVM() {
		rounds = 20
	}
	// row is printed with a goal where it is KVM's.
	row := func(name string, all []time.Duration, most time.Duration) {
		if !t.isKVM() {
			t.figure(name, show(all))
			return
		}
		_, worst := spread(all)
		t.goal(name, show(all), fmt.Sprintf("≤ %v", most), worst <= most)
	}
	for _, words := range []string{"hang", "halt"} {
		all, err := repeat(rounds, func() (time.Duration, error) { return t.stopLatency(words) })
		if err != nil {
			return err
		}
		row("Stop until the machine has ended, "+words, all, time.Second)
	}
	all, err := repeat(rounds, t.schedulerExit)
	if err != nil {
		return err
	}
	row("SCDX written until the machine has ended", all, 2*monitor.DefaultPoll)
	return nil
}
