package kvm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// sparseEnd is how far boot data and small kernels reach: a page here and there, for which clearing a huge
// page would take longer than all of the setup.
const sparseEnd = 16 << 20

// mapMemory maps the layout's memory; nothing is touched. The reserved part is a memfd, so that the host
// can hand it out or keep it by itself.
func (m *instance) mapMemory(l vm.Layout) error {
	for _, s := range l.RAM {
		mem, err := guestmem.MapAnonymous(s.Size)
		if err != nil {
			return fmt.Errorf("%w: %w: mapping %d bytes of guest RAM: %w", vm.ErrSetup, vm.ErrRoom, s.Size, err)
		}
		if skip := sparseEnd - min(uint64(s.Base), sparseEnd); skip < s.Size {
			// Offered, not promised: a kernel without huge pages refuses, and nothing changes.
			_ = unix.Madvise(mem[skip:], unix.MADV_HUGEPAGE)
		}
		m.regions = append(m.regions, guestmem.Region{Base: s.Base, Mem: mem})
	}
	mem, file, err := guestmem.MapShared("ktstr-reserved", l.Reserved.Size)
	if err != nil {
		return fmt.Errorf("%w: mapping %d bytes of reserved memory: %w", vm.ErrSetup, l.Reserved.Size, err)
	}
	m.regions = append(m.regions, guestmem.Region{Base: l.Reserved.Base, Mem: mem})
	return file.Close()
}

// installMemory makes each region a KVM memory slot: KVM API, 4.35 KVM_SET_USER_MEMORY_REGION.
func (m *instance) installMemory() error {
	for i, r := range m.regions {
		slot := &kvm.UserspaceMemoryRegion{
			Slot:          uint32(i),
			GuestPhysAddr: uint64(r.Base),
			MemorySize:    uint64(len(r.Mem)),
			UserspaceAddr: uint64(uintptr(unsafe.Pointer(&r.Mem[0]))),
		}
		if err := ioctlPtr(m.vmFD, kvm.IIOW(reqSetUserMemory, unsafe.Sizeof(*slot)), slot); err != nil {
			return fmt.Errorf("%w: memory slot %d, %d bytes at %v: %w", vm.ErrSetup, i, len(r.Mem), r.Base, err)
		}
	}
	return nil
}

func (m *instance) unmapMemory() {
	for _, r := range m.regions {
		guestmem.Unmap(r.Mem)
	}
	m.regions = nil
}
