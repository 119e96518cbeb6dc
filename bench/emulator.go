package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

const (
	// hangLimit is how long a guest of QEMU's own may take: without the counter's frequency on its
	// command line, Linux may measure it for ever there.
	hangLimit = 30 * time.Second
	// sleeper is the argument with which this program is the command of a guest.
	sleeper = "sleep"
	slept   = 500 * time.Millisecond
)

// errHung is a process that did not end in time.
var errHung = errors.New("it did not end in time")

// emulatorBoots compares whole runs, from a process's start to its end: ours of true, and what one would do without
// ours, QEMU's own loading of the same kernel, with the same command line and memory, for a command that says a line
// and ends the machine. They take turns, on each QEMU that there is.
func emulatorBoots(args []string) error {
	f := flag.NewFlagSet("emulator", flag.ExitOnError)
	var g linuxGuest
	f.StringVar(&g.kernel, "kernel", "", "a bzImage, or an arm64 Image")
	f.StringVar(&g.vmm, "vmm", "", "ktstr-vmm")
	f.StringVar(&g.sysroot, "sysroot", "", "where an arm64 guest's programs are")
	f.StringVar(&g.self, "self", "", "this program for the guest's architecture")
	arch := f.String("arch", x86.Board{}.Arch(), "the guest's architecture")
	rounds := f.Int("rounds", 7, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if g.board = kernel.Board(*arch); g.board == nil {
		return fmt.Errorf("there is no board for %q", *arch)
	}
	here, cleanUp, err := emulators(g.board)
	if err != nil {
		return err
	}
	defer cleanUp()
	if len(here) == 0 {
		return nil
	}
	initrd, err := g.peersInitrd("/bin/busybox poweroff -f")
	if err != nil {
		return err
	}
	defer os.Remove(initrd)
	return here.each(func(t target) error {
		fmt.Println()
		err := errors.Join(t.wholeRuns(g, initrd, *rounds), t.sleepsInGuest(g), g.parts(t.backend))
		if g.board == (arm64.Board{}) {
			err = errors.Join(err, t.deviceFlood(g))
		}
		return err
	})()
}

// machines are QEMU's own, and the goals for ours beside them.
var machines = map[string]struct {
	flags []string
	goal  float64
}{
	"x86_64": {[]string{"-M", "microvm", "-accel", "tcg", "-cpu", "max"}, 0.8},
	"arm64":  {[]string{"-M", "virt,gic-version=3", "-accel", "tcg", "-cpu", "cortex-a72"}, 0.9},
}

// wholeRuns compares ours with QEMU's own.
func (t target) wholeRuns(g linuxGuest, initrd string, rounds int) error {
	machine := machines[g.board.Arch()]
	peer := append(append([]string{t.qemu, "-no-reboot"}, machine.flags...), g.peers(initrd)...)
	var own, theirs []time.Duration
	hung := 0
	for range rounds {
		d, _, err := t.whole(bootLimit, g.ours(t.mode, "busybox", "true"))
		if err != nil {
			return err
		}
		own = append(own, d)
		d, said, err := t.whole(hangLimit, peer)
		switch {
		case errors.Is(err, errHung):
			hung++
			continue
		case err != nil:
			return err
		case !strings.Contains(said, marker):
			return fmt.Errorf("%s ended without its command's output: %s", strings.Join(peer, " "), said)
		}
		theirs = append(theirs, d)
	}
	t.figure("run -- busybox true", show(own))
	const name = "QEMU's own -kernel and -initrd, in turns"
	if hung > 0 {
		t.figure(name, fmt.Sprintf("%d of %d boots did not end in %v", hung, rounds, hangLimit))
	}
	if len(theirs) == 0 {
		return nil // nothing to compare with
	}
	t.figure(name, show(theirs))
	r := ratio(own, theirs)
	t.goal("ours to that", fmt.Sprintf("%.2f", r), fmt.Sprintf("≤ %v", machine.goal), r <= machine.goal)
	return nil
}

// whole runs a command to its end and returns how long that took and what it said.
func (t target) whole(limit time.Duration, command []string) (time.Duration, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = t.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	said := string(out[max(0, len(out)-1000):])
	switch {
	case ctx.Err() != nil:
		return took, said, fmt.Errorf("%w: %s, %v: …%s", errHung, command[0], limit, said)
	case err != nil:
		return took, said, fmt.Errorf("%s: %w: …%s", strings.Join(command, " "), err, said)
	}
	return took, said, nil
}

// sleepsInGuest measures how much longer than it asks for a command in a guest sleeps.
func (t target) sleepsInGuest(g linuxGuest) error {
	_, said, err := t.whole(bootLimit, g.ours(t.mode, g.self, sleeper))
	if err != nil {
		return err
	}
	var all []time.Duration
	for word := range strings.FieldsSeq(said) {
		ns, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return fmt.Errorf("sleeping in the guest: %w", err)
		}
		all = append(all, time.Duration(ns))
	}
	const most = slept + 20*time.Millisecond
	_, worst := spread(all)
	t.goal(fmt.Sprintf("a guest's sleep of %v, its own clock", slept), show(all), fmt.Sprintf("< %v", most), worst < most)
	return nil
}

// sleeps is the command of that guest.
func sleeps([]string) error {
	for range 5 {
		start := time.Now()
		time.Sleep(slept)
		fmt.Println(time.Since(start).Nanoseconds())
	}
	return nil
}
