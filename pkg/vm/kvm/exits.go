package kvm

import "iter"

// exitNames are the reasons for which a guest leaves KVM and that are counted by themselves, by
// their number: linux/kvm.h, KVM_EXIT_*. The last one is all others.
var exitNames = [...]string{
	2:         "io",
	5:         "hlt",
	6:         "mmio",
	7:         "irq_window",
	8:         "shutdown",
	9:         "fail_entry",
	exitIntr:  "intr",
	17:        "internal_error",
	24:        "system_event",
	exitOther: "other",
}

const (
	exitIntr  = 10
	exitOther = 25
)

// countExit counts one exit by its reason.
func (m *instance) countExit(reason uint32) {
	if reason >= exitOther || exitNames[reason] == "" {
		reason = exitOther
	}
	m.exits[reason].Add(1)
}

// Exits implements vm.Instance.
func (m *instance) Exits() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for i, name := range exitNames {
			if name != "" && !yield(name, m.exits[i].Load()) {
				return
			}
		}
	}
}
