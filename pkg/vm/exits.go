package vm

import (
	"iter"

	"github.com/bobuhiro11/gokvm/kvm"
)

// Reasons of exits that gokvm does not name: linux/kvm.h.
const (
	exitIRQWindow   = 7
	exitSystemEvent = 24
)

// numExits is how many reasons are counted by themselves; the last counter is all others.
const numExits = 10

// exitNames are the counters' names, by their index in Machine.exits.
var exitNames = [numExits]string{"io", "mmio", "hlt", "shutdown", "fail_entry", "internal_error", "intr", "irq_window", "system_event", "other"}

func exitIndex(reason uint32) int {
	switch reason {
	case uint32(kvm.EXITIO):
		return 0
	case uint32(kvm.EXITMMIO):
		return 1
	case uint32(kvm.EXITHLT):
		return 2
	case uint32(kvm.EXITSHUTDOWN):
		return 3
	case uint32(kvm.EXITFAILENTRY):
		return 4
	case uint32(kvm.EXITINTERNALERROR):
		return 5
	case uint32(kvm.EXITINTR):
		return 6
	case exitIRQWindow:
		return 7
	case exitSystemEvent:
		return 8
	}
	return numExits - 1
}

// Exits returns how often the guest left KVM, by reason; a fixed set of names, in order.
func (m *Machine) Exits() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for i, name := range exitNames {
			if !yield(name, m.exits[i].Load()) {
				return
			}
		}
	}
}
