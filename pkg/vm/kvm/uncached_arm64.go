package kvm

import (
	"errors"
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
)

// The field that says whether a processor has FEAT_S2FWB: Arm Architecture Reference Manual, "ID_AA64MMFR2_EL1,
// AArch64 Memory Model Feature Register 2".
const (
	fwbShift = 40
	fwbMask  = 0xf
)

var regFeatures = system(3, 0, 0, 7, 2)

// CheckUncached reports, by ErrIncoherent, why a guest that maps memory as Device or Non-cacheable can't share it with
// this host; nil if it can. This process has cacheable mappings of that memory, and the Arm Architecture Reference
// Manual says under "Mismatched memory attributes" that what one side writes may then be lost to the other, or lost
// altogether. With FEAT_S2FWB KVM makes all of a guest's memory Normal Write-Back, whatever the guest asks for.
//
// The register is KVM's to tell, and it shows what KVM itself goes by: arch/arm64/kvm/sys_regs.c of Linux hides other
// fields of it. MRS in user space reads the field as zero: it is FTR_HIDDEN in arch/arm64/kernel/cpufeature.c.
func (b Backend) CheckUncached() (err error) {
	board := arm64.Board{}
	layout, err := board.Layout(16<<20, 1<<20)
	if err != nil {
		return err
	}
	m, err := b.New(vm.Spec{Board: board, Layout: layout, Topology: topology.OfCores(1), Console: io.Discard},
		func(error) {})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	features, err := m.(*instance).vcpus[0].get(regFeatures)
	if err != nil {
		return fmt.Errorf("%w: KVM_GET_ONE_REG of ID_AA64MMFR2_EL1: %w", vm.ErrSetup, err)
	}
	if features>>fwbShift&fwbMask == 0 {
		return unavailable(ErrIncoherent, "the processors have no FEAT_S2FWB (ID_AA64MMFR2_EL1 is 0x%x)", features)
	}
	return nil
}
