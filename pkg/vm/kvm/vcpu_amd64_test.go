package kvm

import (
	"errors"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// KVM says of MSRs only how many it set: one that it refuses is an error that names it. What the board sets
// no KVM refuses, so this is inside the package.
func TestMSRThatKVMRefuses(t *testing.T) {
	t.Attr("backend", "kvm") // as testenv.KVM, which a test in this package can't use
	if err := (Backend{}).Check(x86.Board{}); err != nil {
		t.Skipf("this test needs a usable /dev/kvm: %v", err)
	}
	layout, err := x86.Board{}.Layout(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Backend{}.New(vm.Spec{Board: x86.Board{}, Layout: layout, Topology: topology.OfCores(1)}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	fd := m.(*instance).vcpus[0].fd
	good := x86.MSRs()
	if err := setMSRs(fd, good); err != nil {
		t.Error(err)
	}
	// MTRRs have no memory type 2.
	bad := append(good[:1:1], x86.MSR{Index: 0x2ff, Value: 0xc02}, good[0])
	err = setMSRs(fd, bad)
	if !errors.Is(err, vm.ErrSetup) || !strings.Contains(err.Error(), "MSR 0x2ff the value 0xc02, after 1 of 3") {
		t.Error(err)
	}
}
