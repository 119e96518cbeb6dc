package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func scenario(words string) run.Config {
	return run.Config{
		VM:      vm.Config{Backend: kvm.Backend{}, Kernel: x86.ELF{File: bytes.NewReader(guest.Demo)}, Cmdline: "demo.scenario=" + words},
		Timeout: 5 * time.Minute,
		Grace:   -1,
	}
}

func floods() error {
	for _, f := range []struct{ count, size int }{{1_000_000, 24}, {4 << 30 / 4096, 4096}, {4 << 30 >> 16, 1 << 16}} {
		r := run.Run(context.Background(), scenario(fmt.Sprintf("flood demo.count=%d demo.size=%d", f.count, f.size)))
		if r.Outcome != run.Exited || r.Ring.ByType["RAWO"] != uint64(f.count) || r.Ring.CRCErrors+r.Ring.Drops != 0 {
			return fmt.Errorf("flood: %s, %s, %+v", r.Outcome, r.Reason, r.Ring)
		}
		took := (r.Duration - r.FirstExit).Seconds()
		fmt.Printf("%8d messages of %6d bytes: %12.0f messages/s %8.0f MB/s of payload, none lost or dropped\n",
			f.count, f.size, float64(f.count)/took, float64(f.count)*float64(f.size)/took/1e6)
	}
	return nil
}

// watched is a machine that notes when it ended.
type watched struct {
	run.Machine
	ended chan time.Time
}

func (w watched) Start() error {
	go func() {
		<-w.Done()
		w.ended <- time.Now()
	}()
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
// until its vCPU has ended.
func schedulerExit() (time.Duration, error) {
	console, ended := &stamp{}, make(chan time.Time, 1)
	cfg := scenario("sched-exit")
	cfg.NewMachine = func(c vm.Config) (run.Machine, error) {
		c.Console = io.MultiWriter(console, c.Console)
		m, err := vm.New(c)
		return watched{m, ended}, err
	}
	if r := run.Run(context.Background(), cfg); r.Outcome != run.SchedulerGone {
		return 0, fmt.Errorf("sched-exit: %s, %s", r.Outcome, r.Reason)
	}
	return (<-ended).Sub(console.at), nil
}

// stopLatency measures from Stop until the vCPU has ended.
func stopLatency(words string) (took time.Duration, err error) {
	cfg := scenario(words).VM
	layout, err := x86.Board{}.Layout(0, 0)
	if err != nil {
		return 0, err
	}
	ring := layout.Reserved
	cfg.Cmdline = shm.Params{Base: uint64(ring.Base), Size: ring.Size}.String() + " " + cfg.Cmdline
	m, err := vm.New(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	region, err := m.Memory().Window(ring.Base, ring.Size)
	if err != nil {
		return 0, err
	}
	if err := shm.Init(region); err != nil {
		return 0, err
	}
	if err := m.Start(); err != nil {
		return 0, err
	}
	time.Sleep(20 * time.Millisecond) // into the guest
	measured := errors.New("measured")
	start := time.Now()
	m.Stop(measured)
	if reason := m.Wait(); reason != measured {
		return 0, fmt.Errorf("%s ended before it was stopped: %w", words, reason)
	}
	return time.Since(start), nil
}

func stops() error {
	const rounds = 40
	repeat := func(fn func() (time.Duration, error)) (all []time.Duration, err error) {
		for range rounds {
			d, err := fn()
			if err != nil {
				return nil, err
			}
			all = append(all, d)
		}
		return all, nil
	}
	for _, words := range []string{"hang", "halt"} {
		all, err := repeat(func() (time.Duration, error) { return stopLatency(words) })
		if err != nil {
			return err
		}
		_, worst := spread(all)
		goal("Stop until the vCPU has ended, "+words, show(all), "≤ 1s", worst <= time.Second)
	}
	all, err := repeat(schedulerExit)
	if err != nil {
		return err
	}
	_, worst := spread(all)
	const ticks = 2 * monitor.DefaultPoll
	goal("SCDX written until the vCPU has ended", show(all), fmt.Sprintf("≤ %v", ticks), worst <= ticks)
	return nil
}
