// Command bench measures what the project promises of its speed, each figure beside its limit or
// its goal, from one run on one machine. "make bench" builds what it needs first. "bench boot" is
// what "make bench-boot" runs where KVM runs Linux.
package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "boot" {
		if err := boots(os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			os.Exit(1)
		}
		return
	}
	fmt.Printf("%s, %d processors, %s\n\n", processor(), runtime.NumCPU(), runtime.Version())
	failed := false
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"live drain of a 16 MiB ring, against a copy and a CRC-32 of the same payloads", drains},
		{"flood through KVM, with every message read and checked", floods},
		{"start", starts},
		{"stop", stops},
		{"at rest, and busy", resources},
	} {
		fmt.Printf("%s\n%s\n", part.name, strings.Repeat("-", len(part.name)))
		if err := part.run(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			failed = true
		}
		fmt.Println()
	}
	if failed {
		os.Exit(1)
	}
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

// goal prints a figure beside what it should be.
func goal(name, figure, want string, reached bool) {
	verdict := "reached"
	if !reached {
		verdict = "MISSED"
	}
	fmt.Printf("%-44s %-34s goal %-12s %s\n", name, figure, want, verdict)
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
