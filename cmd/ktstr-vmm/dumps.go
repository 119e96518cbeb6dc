package main

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// dumpFlags are the flags that say when the guest is asked for a dump of its scheduler's state.
type dumpFlags struct {
	on    []string
	polls int
	rate  float64
}

// The words of --dump-on.
const (
	dumpOnTimeout = "timeout"
	dumpOnStall   = "stall"
)

func (d *dumpFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringSliceVar(&d.on, "dump-on", []string{dumpOnTimeout},
		"when to ask for a dump of the scheduler's state: timeout, at the soft deadline; stall; none")
	f.IntVar(&d.polls, "stall-polls", 0, "a stall is so many polls in a row without a STIM; 0 for never")
	f.Float64Var(&d.rate, "stall-rate", 0, "or fewer messages a second than this; 0 for never")
}

// check judges the flags' values; an error names the flag. Nothing is asked of a guest where nobody wants it.
func (d *dumpFlags) check(wanted bool) (when run.Dumps, err error) {
	stall := run.Stall{Polls: d.polls, Rate: d.rate}
	for _, word := range d.on {
		switch word {
		case dumpOnTimeout:
			when.AtSoftDeadline = wanted
		case dumpOnStall:
			when.Stall = stall
		case "none":
		default:
			return when, fmt.Errorf("--dump-on %q: it is one or more of timeout, stall, or none", word)
		}
	}
	stalls := slices.Contains(d.on, dumpOnStall)
	switch {
	case d.polls < 0:
		return when, fmt.Errorf("--stall-polls %d: it can be 0 or more", d.polls)
	case !(d.rate >= 0) || math.IsInf(d.rate, 0):
		return when, fmt.Errorf("--stall-rate %v: it can be 0 or more", d.rate)
	case stalls && stall == (run.Stall{}):
		return when, errors.New("--dump-on stall: --stall-polls or --stall-rate says what a stall is")
	case !stalls && stall != (run.Stall{}):
		return when, errors.New("--stall-polls and --stall-rate mean nothing without --dump-on stall")
	}
	return when, nil
}
