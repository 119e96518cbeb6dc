package main

import (
	"fmt"

	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

// sayPinned says where the processors' threads run, and where they are too many for a thread each.
func (o *options) sayPinned(log *zap.Logger, b vm.Backend) {
	guest, host := o.Topology.CPUs(), len(o.Pinned)
	if b.Name() == (qemu.Backend{}).Name() && qemu.Crowded(guest, o.Pinned) {
		log.Info(fmt.Sprintf("the guest's %d processors take turns on one thread of the emulator: they are too many for "+
			"this host's CPUs to have one each", guest))
	}
	switch {
	case host == 0:
	case host < guest:
		log.Info(fmt.Sprintf("the guest's %d processors are pinned to the host's CPUs %s, fewer than they are: they "+
			"share them and take turns, which shows in what the guest measures", guest, affinity.Format(o.Pinned)))
	default:
		log.Info(fmt.Sprintf("the guest's %d processors are pinned to the host's CPUs %s", guest,
			affinity.Format(o.Pinned)))
	}
}
