package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/tally"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// MaxCPUs is how many processors a guest can have.
const MaxCPUs = 32

// The words of dump-on that ask for something.
const (
	dumpOnTimeout = "timeout"
	dumpOnStall   = "stall"
)

// Check judges all values, by themselves and together, and fills in what is made of them. An error is an *Error.
func (s *Settings) Check() error {
	if s.Memory == 0 || s.ShmSize == 0 {
		return s.errorOf(errors.New("neither can be 0"), "memory", "shm-size")
	}
	for _, x := range s.list {
		if x.check != nil {
			if err := x.wrap(x.check()); err != nil {
				return err
			}
		}
	}
	if s.Quiet && s.Verbose {
		return s.errorOf(errors.New("they exclude each other"), "quiet", "verbose")
	}
	for _, check := range []func() error{s.checkTopology, s.checkPin, s.checkDumps} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// errorOf returns an error about these settings.
func (s *Settings) errorOf(err error, keys ...string) error {
	e := &Error{Err: err}
	for _, key := range keys {
		e.Given = append(e.Given, s.Lookup(key).given())
	}
	return e
}

// Require returns an error that says that a setting has no value.
func (s *Settings) Require(key, what string) error {
	return fmt.Errorf("%s is needed: %s", s.Lookup(key).Source, what)
}

func (s *Settings) checkCPUs() error {
	t, err := topology.Parse(s.CPUs)
	if err == nil {
		t, err = t.WithDefaults()
	}
	if err != nil {
		return err
	}
	if n := t.CPUs(); n > MaxCPUs {
		return fmt.Errorf("%d processors, it can be 1 to %d", n, MaxCPUs)
	}
	s.Topology = t
	return nil
}

// checkTopology completes what checkCPUs has begun.
func (s *Settings) checkTopology() (err error) {
	if s.LLC != "" {
		if s.Topology.LLCCores, err = topology.ParseLLC(s.LLC); err == nil {
			s.Topology, err = s.Topology.WithDefaults()
		}
		if err != nil {
			return s.errorOf(err, "llc")
		}
	}
	if s.NUMA != "" {
		if s.Topology.Nodes, s.Topology.Distances, err = topology.ParseNUMA(s.NUMA); err == nil {
			s.Topology, err = s.Topology.WithDefaults()
		}
		if err != nil {
			return s.errorOf(err, "numa")
		}
	}
	return nil
}

// checkPin chooses the host's CPUs.
func (s *Settings) checkPin() error {
	s.Pinned = nil
	if s.Pin == "" {
		return nil
	}
	allowed, err := affinity.Allowed()
	if err == nil && s.Pin != "auto" {
		allowed, err = affinity.Parse(s.Pin, allowed)
	}
	if err != nil {
		return s.errorOf(err, "pin")
	}
	s.Pinned = allowed[:min(len(allowed), s.Topology.CPUs())]
	return nil
}

func (s *Settings) checkPush() error {
	if s.MetricsPush == "" {
		return nil
	}
	return tally.CheckURL(s.MetricsPush)
}

func (s *Settings) checkExporter() error {
	if s.Exporter == ExporterAuto || s.Exporter == ExporterNone || filepath.IsAbs(s.Exporter) {
		return nil
	}
	return fmt.Errorf("it is %s, %s or the absolute path of a socket", ExporterAuto, ExporterNone)
}

func (s *Settings) checkControl() error {
	if s.Control == "" {
		return fmt.Errorf("it is %s, %s or the path of a socket", ControlAuto, ControlNone)
	}
	return nil
}

// checkDumps says when a dump is asked for: never where nobody wants it.
func (s *Settings) checkDumps() error {
	if s.command != Run {
		return nil
	}
	stall := run.Stall{Polls: s.StallPolls, Rate: s.StallRate}
	wanted := s.Scheduler != "" || s.Lookup("dump-on").Changed
	s.Dumps = run.Dumps{AtSoftDeadline: wanted && slices.Contains(s.DumpOn, dumpOnTimeout)}
	if slices.Contains(s.DumpOn, dumpOnStall) {
		s.Dumps.Stall = stall
	}
	switch stalls := slices.Contains(s.DumpOn, dumpOnStall); {
	case stalls && stall == (run.Stall{}):
		return s.errorOf(fmt.Errorf("%s or %s says what a stall is", s.source("stall-polls"), s.source("stall-rate")),
			"dump-on")
	case !stalls && stall != (run.Stall{}):
		return fmt.Errorf("%s and %s mean nothing without %s stall", s.source("stall-polls"), s.source("stall-rate"),
			s.source("dump-on"))
	}
	return nil
}

func (s *Settings) source(key string) string { return s.Lookup(key).Source }

// CheckMemory judges the sizes for a board.
func (s *Settings) CheckMemory(b vm.Board) error {
	layout, err := b.Layout(uint64(s.Memory), uint64(s.ShmSize))
	if err != nil {
		return s.errorOf(err, "memory", "shm-size")
	}
	if s.command == Run { // with what lies beside the ring, which the ring's limits do not count
		if layout, err = b.Layout(uint64(s.Memory), uint64(s.ShmSize)+call.Size); err != nil {
			return s.errorOf(fmt.Errorf("with the call area's %d bytes behind the ring: %w", call.Size, err),
				"memory", "shm-size")
		}
	}
	if nodes := s.Topology.Nodes; nodes > 0 {
		if _, err := layout.Nodes(nodes); err != nil {
			return s.errorOf(err, "memory", "shm-size", "numa")
		}
	}
	return nil
}
