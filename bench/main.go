// Command bench measures what the project promises about its speed. It prints each figure beside its limit or its goal,
// from one run on one machine, on each back end that the machine has. "make bench" builds what it needs first. "bench
// kvm" and "bench emulator" are what "make bench-boot" runs: boots of Linux; "bench suite" is "make bench-suite", and
// "bench control" is "make bench-control".
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	measure := func([]string) error { return everything() }
	args := os.Args[1:]
	if len(args) > 0 {
		measure = map[string]func([]string) error{"kvm": kvmBoots, "emulator": emulatorBoots, doorbell: doorbells,
			sleeper: sleeps, deviceWriter: writeDevice, "suite": suites, "control": controls}[args[0]]
		args = args[1:]
	}
	if measure == nil {
		fmt.Fprintf(os.Stderr, "bench: %q: it is kvm, emulator, doorbell, suite, control, or nothing\n", os.Args[1])
		os.Exit(2)
	}
	if err := measure(args); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// part is some figures under one heading.
type part struct {
	name string
	run  func() error
}

// everything measures all but boots of Linux. What fails does not keep the rest from being measured.
func everything() error {
	fmt.Printf("%s\n\n", host())
	here, cleanUp, err := targets()
	if err != nil {
		return err
	}
	defer cleanUp()
	fmt.Println()
	parts := []part{{"live drain of a 16 MiB ring, against a copy and a CRC-32 of the same payloads", drains}}
	if len(here) > 0 {
		parts = append(parts,
			part{"flood, with every message read and checked; the middle of five", here.each(target.floods)},
			part{"start", here.each(target.starts)},
			part{"stop", here.each(target.stops)},
			part{"doorbell", here.each(target.bells)},
			part{"at rest, and busy", here.each(target.resources)},
		)
	}
	var failed []error
	for _, part := range parts {
		fmt.Printf("%s\n%s\n", part.name, strings.Repeat("-", len(part.name)))
		if err := part.run(); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", part.name, err))
		}
		fmt.Println()
	}
	return errors.Join(failed...)
}

// host says where the figures are from.
func host() string {
	return fmt.Sprintf("%s, %d processors, %s", processor(), runtime.NumCPU(), runtime.Version())
}

// processor is the processor's name as Linux has it.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.Trim(name, "\t :\n")
		}
	}
	return runtime.GOARCH
}

// figure prints one that has no goal.
func figure(name, value string) { fmt.Printf("%-55s %s\n", name, value) }

// goal prints a figure beside what it should be.
func goal(name, value, want string, reached bool) {
	verdict := "reached"
	if !reached {
		verdict = "MISSED"
	}
	fmt.Printf("%-55s %-33s goal %-12s %s\n", name, value, want, verdict)
}

// spread is the middle and the largest of some measurements.
func spread(ds []time.Duration) (median, most time.Duration) {
	ds = slices.Sorted(slices.Values(ds))
	return ds[len(ds)/2], ds[len(ds)-1]
}

func show(ds []time.Duration) string {
	median, most := spread(ds)
	return fmt.Sprintf("median %v, worst %v", median.Round(time.Microsecond), most.Round(time.Microsecond))
}

// ratio is that of two middles.
func ratio(a, b []time.Duration) float64 {
	ma, _ := spread(a)
	mb, _ := spread(b)
	return ma.Seconds() / mb.Seconds()
}
