package accel_test

import (
	"errors"
	"io"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
)

// Where a guest's Device memory is not coherent with the host's caches, KVM is refused to a Linux that has its ring in
// such memory, and to no other guest.
func TestRingInDeviceMemory(t *testing.T) {
	testenv.KVM(t)
	incoherent := errors.Is(kvm.Backend{}.CheckUncached(), kvm.ErrIncoherent)
	noMap, cacheable := arm64.Board{Reservation: fdt.NoMap}, arm64.Board{Reservation: fdt.Cacheable}
	for name, tc := range map[string]struct {
		guest   accel.Guest
		refused bool
	}{
		"Linux, no-map":    {accel.Guest{Board: noMap, Linux: true}, incoherent},
		"Linux, cacheable": {accel.Guest{Board: cacheable, Linux: true}, false},
		"embedded guest":   {accel.Guest{Board: noMap}, false},
	} {
		if err := accel.CheckKVM(tc.guest); errors.Is(err, kvm.ErrIncoherent) != tc.refused {
			t.Errorf("%s: auto: %v, refused: %t", name, err, tc.refused)
		}
		layout, err := tc.guest.Board.Layout(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := accel.Choose(accel.KVM, tc.guest)
		m, err := b.New(vm.Spec{Board: tc.guest.Board, Layout: layout, Topology: topology.OfCores(1),
			Console: io.Discard}, func(error) {})
		if errors.Is(err, kvm.ErrIncoherent) != tc.refused || (err != nil) != tc.refused || b.Name() != "kvm" {
			t.Errorf("%s: %s: %v, refused: %t", name, b.Name(), err, tc.refused)
		}
		if err == nil {
			if err := m.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
