// Command tiers runs the tests that need a machine wherever they can run, and says what became of
// all tests.
//
//	tiers guests [-host FILE] [-run REGEXP] [-backend B] [-arch A] [-kernel V] [TIER...]
//	tiers summary FILE [FILE...]
//
// "guests" writes test events, for gotestsum: of the Linux suite on each back end, architecture and kernel, and of
// the machine tests on KVM where this host has none. With -host, the events of "go test" on this
// host, it runs the machine tests alone that were skipped there. What it runs on this host comes
// first, what runs in the bed after that and beside nothing else.
//
// "summary" reads such events and prints how many tests ran where. It fails when a test failed and,
// with CI set in the environment, when anything was left out.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
)

var (
	backends      = []string{"emulator", "kvm"}
	architectures = []string{"x86_64", "arm64"}
	kernels       = []string{"6.1", newest, schedExt}

	// places are where the machine and Linux tiers run.
	places = []place{{"emulator", "x86_64"}, {"emulator", "arm64"}, {"kvm", "x86_64"}, {"kvm", "arm64"}}

	errUsage = errors.New("usage: tiers guests [-host FILE] [-run REGEXP] [-backend B] [-arch A] [-kernel V] " +
		"[machine] [linux], or: tiers summary FILE [FILE...]")
)

// newest is the newest of the kernels that are fetched.
const newest = "6.12"

// schedExt is the kernel that scripts/build-linux builds, for x86_64. The tests for it alone have names of their own.
const (
	schedExt      = "6.12-scx"
	schedExtTests = "^TestSchedExt"
)

// place is a back end and the architecture of its guests.
type place struct{ backend, arch string }

// has says whether the Linux suite runs there on a kernel.
func (p place) has(kernel string) bool {
	return kernel != schedExt || p.arch == "x86_64"
}

func main() {
	ok, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "tiers: %v\n", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(args []string) (ok bool, err error) {
	if len(args) == 0 {
		return false, errUsage
	}
	switch args[0] {
	case "guests":
		return runGuests(args[1:])
	case "summary":
		all, err := readResults(args[1:]...)
		if err != nil {
			return false, err
		}
		w := bufio.NewWriter(os.Stdout)
		ok := summarize(all).print(w, os.Getenv("CI") != "")
		return ok, w.Flush()
	}
	return false, errUsage
}

// choice is what the guests command's flags and arguments say.
type choice struct {
	host     string // events
	run      string // regexp
	backends []string
	archs    []string
	kernels  []string
	tiers    []string
}

func parseChoice(args []string) (choice, error) {
	c := choice{backends: backends, archs: architectures, kernels: kernels}
	f := flag.NewFlagSet("guests", flag.ContinueOnError)
	f.StringVar(&c.host, "host", "", "events of go test on this host")
	f.StringVar(&c.run, "run", "", "only tests that match")
	f.Func("backend", "only on this back end", only(&c.backends))
	f.Func("arch", "only guests of this architecture", only(&c.archs))
	f.Func("kernel", "only on this kernel", only(&c.kernels))
	if err := f.Parse(args); err != nil {
		return c, err
	}
	c.tiers = f.Args()
	if len(c.tiers) == 0 {
		c.tiers = []string{"machine", "linux"}
	}
	for _, t := range c.tiers {
		if t != "machine" && t != "linux" {
			return c, fmt.Errorf("tier %q: %w", t, errUsage)
		}
	}
	return c, nil
}

// only makes a list of one of its words.
func only(list *[]string) func(string) error {
	return func(s string) error {
		if !slices.Contains(*list, s) {
			return fmt.Errorf("it is one of %v", *list)
		}
		*list = []string{s}
		return nil
	}
}
