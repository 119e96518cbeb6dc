package main

import (
	"fmt"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

// topologyFlags say how the guest's processors are arranged, and where on the host they run.
type topologyFlags struct {
	cpus, llc, numa, pin string

	topology topology.Topology // of the first three
	pinned   []int             // of the last
}

func (o *topologyFlags) register(f *pflag.FlagSet) {
	f.StringVar(&o.cpus, "cpus", "1", "the guest's processors: a number of cores, or sockets=S,dies=D,cores=C,threads=T")
	f.StringVar(&o.llc, "llc", "", "cores=K: how many cores of a die share a last-level cache, all by default")
	f.StringVar(&o.numa, "numa", "", "N[,distance=D]: divide processors and memory among NUMA nodes; "+
		"distance=ROW/ROW/… with rows of D:D:… for all distances")
	f.StringVar(&o.pin, "pin", "", "pin the processors' threads to CPUs of the host: auto, or a list such as 0-3,8")
}

// check judges the flags' values together; an error names the flag.
func (o *topologyFlags) check() (err error) {
	if o.topology, err = topology.Parse(o.cpus); err != nil {
		return fmt.Errorf("--cpus %s: %w", o.cpus, err)
	}
	if o.topology, err = o.topology.WithDefaults(); err != nil {
		return fmt.Errorf("--cpus %s: %w", o.cpus, err)
	}
	if n := o.topology.CPUs(); n > maxCPUs {
		return fmt.Errorf("--cpus %s: %d processors, it can be 1 to %d", o.cpus, n, maxCPUs)
	}
	if o.llc != "" {
		if o.topology.LLCCores, err = topology.ParseLLC(o.llc); err == nil {
			o.topology, err = o.topology.WithDefaults()
		}
		if err != nil {
			return fmt.Errorf("--llc %s: %w", o.llc, err)
		}
	}
	if o.numa != "" {
		if o.topology.Nodes, o.topology.Distances, err = topology.ParseNUMA(o.numa); err == nil {
			o.topology, err = o.topology.WithDefaults()
		}
		if err != nil {
			return fmt.Errorf("--numa %s: %w", o.numa, err)
		}
	}
	return o.checkPin()
}

func (o *topologyFlags) checkPin() error {
	if o.pin == "" {
		return nil
	}
	allowed, err := affinity.Allowed()
	if err == nil && o.pin != "auto" {
		allowed, err = affinity.Parse(o.pin, allowed)
	}
	if err != nil {
		return fmt.Errorf("--pin %s: %w", o.pin, err)
	}
	o.pinned = allowed[:min(len(allowed), o.topology.CPUs())]
	return nil
}

// sayPinned says where the processors' threads run, and where they are too many for a thread each.
func (o *topologyFlags) sayPinned(log *zap.Logger, b vm.Backend) {
	guest, host := o.topology.CPUs(), len(o.pinned)
	if b.Name() == (qemu.Backend{}).Name() && qemu.Crowded(guest, o.pinned) {
		log.Info(fmt.Sprintf("the guest's %d processors take turns on one thread of the emulator: they are too many for "+
			"this host's CPUs to have one each", guest))
	}
	switch {
	case host == 0:
	case host < guest:
		log.Info(fmt.Sprintf("the guest's %d processors are pinned to the host's CPUs %s, fewer than they are: they "+
			"share them and take turns, which shows in what the guest measures", guest, affinity.Format(o.pinned)))
	default:
		log.Info(fmt.Sprintf("the guest's %d processors are pinned to the host's CPUs %s", guest,
			affinity.Format(o.pinned)))
	}
}
