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

// emulatorBoots compares whole runs, from a process's start to its end: ours of /bin/true, and what one
// would do without ours, QEMU's own loading of the same kernel, with the same command line and memory,
// for a command that says a line and ends the machine. They take turns, on each QEMU that there is.
func emulatorBoots(args []string) error {
	f := flag.NewFlagSet("emulator", flag.ExitOnError)
	kernel := f.String("kernel", "", "a bzImage")
	vmm := f.String("vmm", "", "ktstr-vmm")
	rounds := f.Int("rounds", 7, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	here, cleanUp, err := emulators()
	if err != nil {
		return err
	}
	defer cleanUp()
	if len(here) == 0 {
		return nil
	}
	initrd, err := peersInitrd("/bin/busybox poweroff -f")
	if err != nil {
		return err
	}
	defer os.Remove(initrd)
	return here.each(func(t target) error {
		fmt.Println()
		return errors.Join(
			t.wholeRuns(*kernel, *vmm, initrd, *rounds),
			t.sleepsInGuest(*kernel, *vmm),
			parts(t.backend, *kernel, *vmm),
		)
	})()
}

// wholeRuns compares ours with QEMU's own.
func (t target) wholeRuns(kernel, vmm, initrd string, rounds int) error {
	peer := []string{t.qemu, "-M", "microvm", "-accel", "tcg", "-cpu", "max", "-no-reboot"}
	peer = append(peer, microvmGuest(kernel, initrd)...)
	var own, theirs []time.Duration
	hung := 0
	for range rounds {
		d, _, err := t.whole(bootLimit, oursInLinux(t.mode, vmm, kernel, "/bin/true"))
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
			return fmt.Errorf("%s -M microvm ended without its command's output: %s", t.qemu, said)
		}
		theirs = append(theirs, d)
	}
	t.figure("run -- /bin/true", show(own))
	const name = "QEMU's own -kernel and -initrd, in turns"
	if hung > 0 {
		t.figure(name, fmt.Sprintf("%d of %d boots did not end in %v", hung, rounds, hangLimit))
	}
	if len(theirs) == 0 {
		return nil // nothing to compare with
	}
	t.figure(name, show(theirs))
	r := ratio(own, theirs)
	t.goal("ours to that", fmt.Sprintf("%.2f", r), "≤ 0.8", r <= 0.8)
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
func (t target) sleepsInGuest(kernel, vmm string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_, said, err := t.whole(bootLimit, oursInLinux(t.mode, vmm, kernel, self, sleeper))
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
