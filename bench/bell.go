package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// doorbell is the argument with which this program measures its part of everything alone.
const doorbell = "doorbell"

func doorbells([]string) error {
	here, cleanUp, err := targets()
	if err != nil {
		return err
	}
	defer cleanUp()
	return here.each(target.bells)()
}

// bells measures how soon a scheduler's end is heard of, by the doorbell and by the poll alone, and what a guest
// costs the host that rings without end.
func (t target) bells() error {
	const (
		most   = 500 * time.Microsecond
		rounds = 300
	)
	rung, err := t.echo(rounds, true)
	if err != nil {
		return err
	}
	polled, err := t.echo(rounds, false)
	if err != nil {
		return err
	}
	const name = "SCDX written until Stop is called"
	if t.isKVM() {
		t.goal(name, percentiles(rung), fmt.Sprintf("p99 ≤ %v", most), percentile(rung, 99) <= most)
	} else {
		t.goal(name, percentiles(rung), fmt.Sprintf("p50 ≤ %v", most), percentile(rung, 50) <= most)
	}
	t.figure("… by the poll alone", percentiles(polled))
	rings, err := t.busy("doorbell")
	if err != nil {
		return err
	}
	spins, err := t.busy("hang")
	if err != nil {
		return err
	}
	t.figure("processor time, guest rings without end", fmt.Sprintf("%.2f %%", 100*rings))
	t.figure("… and where it spins", fmt.Sprintf("%.2f %%", 100*spins))
	return nil
}

// echo measures how long a guest waits, by its own clock, from just before it writes SCDX to the answer that it
// gets where a run would stop its machine: behind the monitor, its handler and the channel of its verdicts.
func (t target) echo(rounds int, bell bool) (all []time.Duration, err error) {
	m, region, err := ringed(t.scenario(fmt.Sprintf("echo demo.count=%d", rounds)).VM)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	control, err := shm.NewControl(region)
	if err != nil {
		return nil, err
	}
	reader, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		return nil, err
	}
	mux := monitor.NewMux()
	stop := monitor.Stop(errors.New("SCDX"))
	mux.HandleFunc(shm.SchedulerExit, func(msg shm.Message) monitor.Verdict {
		if took, err := shm.DecodeCode(msg.Payload); err == nil && took != 0 {
			all = append(all, time.Duration(took))
		}
		return stop
	})
	cfg := monitor.Config{Reader: reader, Mux: mux}
	if bell {
		cfg.Bell = m.Bell()
	}
	watch := monitor.New(cfg)
	if err := watch.Start(); err != nil {
		return nil, err
	}
	defer watch.Stop()
	if err := m.Start(); err != nil {
		return nil, err
	}
	for limit := time.After(time.Minute); ; {
		select {
		case <-watch.Verdict():
			if err := control.Signal(shm.SlotHost, shm.SignalGo); err != nil {
				return nil, err
			}
		case <-m.Done():
			watch.Stop()
			if len(all) != rounds {
				return nil, fmt.Errorf("echo: %d of %d rounds, and %w", len(all), rounds, m.Wait())
			}
			return all, nil
		case <-limit:
			return nil, errors.New("echo: the guest did not end in a minute")
		}
	}
}

// busy measures how much of a processor this process uses while a guest does not end by itself. The guest itself
// is not in it where it is emulated: that is another process.
func (t target) busy(words string) (float64, error) {
	cfg := t.scenario(words)
	cfg.Timeout = 5 * time.Second
	var begun, ended syscall.Rusage
	var start time.Time
	cfg.OnStart = func() {
		start = time.Now()
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &begun) // it fails for nobody
	}
	r := run.Run(context.Background(), cfg)
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ended)
	if r.Outcome != run.TimedOut {
		return 0, fmt.Errorf("%s: %s, %s", words, r.Outcome, r.Reason)
	}
	used := func(u syscall.Rusage) time.Duration { return time.Duration(u.Utime.Nano() + u.Stime.Nano()) }
	return (used(ended) - used(begun)).Seconds() / time.Since(start).Seconds(), nil
}

// percentile is what p of a hundred measurements are not above.
func percentile(ds []time.Duration, p int) time.Duration {
	ds = slices.Sorted(slices.Values(ds))
	return ds[min(len(ds)*p/100, len(ds)-1)]
}

func percentiles(ds []time.Duration) string {
	at := func(p int) time.Duration { return percentile(ds, p).Round(time.Microsecond) }
	return fmt.Sprintf("p50 %v p90 %v p99 %v", at(50), at(90), at(99))
}
