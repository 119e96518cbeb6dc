package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// What clients do to a flood is measured in turns, in one run.
const (
	controlRounds   = 5
	controlSpan     = 2 * time.Second
	controlSettle   = time.Second // from the start of clients until a span is measured
	controlTails    = 10
	hostileClients  = 500
	hostilePatience = 2 * time.Second
)

// controls measures a flood with and without clients of its control socket: on one back end, which is auto if none is
// named.
func controls(args []string) error {
	fmt.Printf("%s\n\n", host())
	accel := "auto"
	if len(args) > 0 {
		accel = args[0]
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	f := &flooded{client: control.Client{Path: filepath.Join(dir, "run.sock")}}
	cmd := exec.Command(vmmBinary, "demo", "--accel", accel, "--scenario", "flood,count=1000000000000", "--timeout", "1h",
		"--control", f.client.Path)
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		return err
	}
	defer end(cmd)
	f.pid = cmd.Process.Pid
	if err := f.await(); err != nil {
		return err
	}
	var alone, followed, attacked []float64
	var most float64
	for range controlRounds {
		for _, with := range []struct {
			rates   *[]float64
			clients func(context.Context) error
		}{{&alone, nil}, {&followed, f.tails}, {&alone, nil}, {&attacked, f.hostile}} {
			rate, err := f.rate(with.clients)
			if err != nil {
				return err
			}
			*with.rates = append(*with.rates, rate)
			mib, err := f.memory()
			if err != nil {
				return err
			}
			most = max(most, mib)
		}
	}
	a := middle(alone)
	figure("a flood of 24 bytes on "+f.accelerator, fmt.Sprintf("%.0f messages/s", a))
	r := middle(followed) / a
	goal(fmt.Sprintf("with %d tail -f, to that", controlTails), fmt.Sprintf("%.3f", r), "≥ 0.95", r >= 0.95)
	figure(fmt.Sprintf("with %d hostile clients, to that", hostileClients), fmt.Sprintf("%.3f", middle(attacked)/a))
	goal("the most memory beside guest RAM", fmt.Sprintf("%.1f MiB", most), "≤ 48 MiB", most <= 48)
	return nil
}

// middle is the middle one of some figures.
func middle(all []float64) float64 { return slices.Sorted(slices.Values(all))[len(all)/2] }

// flooded is a run whose guest floods it.
type flooded struct {
	client      control.Client
	pid         int
	accelerator string
}

// await waits until the guest writes.
func (f *flooded) await() error {
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s, err := f.client.Status(context.Background())
		if err == nil && s.Messages > 0 {
			f.accelerator = s.Accelerator
			return nil
		}
		if time.Now().After(limit) {
			return errors.Join(errors.New("no message came"), err)
		}
	}
}

// rate is how many messages come a second, with clients that do something until their context ends.
func (f *flooded) rate(clients func(context.Context) error) (float64, error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		if clients == nil {
			done <- nil
			return
		}
		done <- clients(ctx)
	}()
	time.Sleep(controlSettle)
	before, err := f.status()
	if err == nil {
		time.Sleep(controlSpan)
		var after *control.Status
		if after, err = f.status(); err == nil {
			cancel()
			return float64(after.Messages-before.Messages) / (after.Elapsed - before.Elapsed), <-done
		}
	}
	cancel()
	return 0, errors.Join(err, <-done)
}

// status asks until there is room for one more client.
func (f *flooded) status() (s *control.Status, err error) {
	for range 1000 {
		if s, err = f.client.Status(context.Background()); !errors.Is(err, control.ErrBusy) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return s, err
}

// tails follow the run as people do, with the program.
func (f *flooded) tails(ctx context.Context) error {
	var all sync.WaitGroup
	failed := make(chan error, controlTails)
	for range controlTails {
		cmd := exec.CommandContext(ctx, vmmBinary, "ctl", "--control", f.client.Path, "tail", "-f")
		all.Go(func() {
			if err := cmd.Run(); ctx.Err() == nil {
				failed <- fmt.Errorf("a tail ended before the run: %w", err)
			}
		})
	}
	all.Wait()
	close(failed)
	return <-failed
}

// hostile clients connect, say nothing or nonsense, do not read, and die.
func (f *flooded) hostile(ctx context.Context) error {
	asks := []string{"", "{", "\n", strings.Repeat("x", 2*control.MaxRequest),
		`{"ktstr_vmm_control":1,"verb":"tail","follow":true}` + "\n",
		`{"ktstr_vmm_control":1,"verb":"ring"}` + "\n"}
	var all sync.WaitGroup
	for range hostileClients {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := net.Dial("unix", f.client.Path)
				if err != nil {
					continue
				}
				_, _ = io.WriteString(conn, asks[rand.IntN(len(asks))])
				select {
				case <-ctx.Done():
				case <-time.After(rand.N(hostilePatience)):
				}
				_ = conn.Close()
			}
		})
	}
	all.Wait()
	return nil
}

// memory is the resident memory of the run's process without its guest's, in MiB.
func (f *flooded) memory() (float64, error) {
	all, err := smaps.Read(f.pid)
	kib := 0
	for _, m := range all {
		if !m.Memfd && m.Size() != vm.DefaultMemory-vm.DefaultReserved-16<<20 {
			kib += m.RSS
		}
	}
	return float64(kib) / 1024, err
}
