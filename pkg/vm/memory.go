package vm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// memory is the host's mappings of a machine's RAM and the KVM slots made of them.
type memory struct {
	spans []Span
	maps  [][]byte // one for each span
}

// mapMemory maps the plan's RAM and its reserved part; nothing is touched. The reserved part is
// a memfd, so that the host can hand it out or keep it by itself.
func mapMemory(p Plan) (*memory, error) {
	m := &memory{}
	for _, s := range p.RAM {
		mem, err := mapRAM(s.Size)
		if err != nil {
			m.unmap()
			return nil, fmt.Errorf("%w: mapping %d bytes of guest RAM: %w; try less --memory", ErrSetup, s.Size, err)
		}
		m.add(s, mem)
	}
	mem, err := mapSealed("ktstr-reserved", p.Reserved.Size)
	if err != nil {
		m.unmap()
		return nil, fmt.Errorf("%w: mapping %d bytes of reserved memory: %w", ErrSetup, p.Reserved.Size, err)
	}
	m.add(p.Reserved, mem)
	return m, nil
}

// hugePage is x86-64's and arm64's first size above 4 KiB pages.
const hugePage = 2 << 20

// mapRAM maps size bytes of anonymous memory at a multiple of hugePage: KVM gives a guest a huge
// page only where the host's address and the guest's are as far into one.
func mapRAM(size uint64) ([]byte, error) {
	whole := uintptr(size) + hugePage
	p, err := unix.MmapPtr(-1, 0, nil, whole, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	before := -uintptr(p) % hugePage
	mem := unsafe.Slice((*byte)(unsafe.Add(p, before)), size)
	// What lies around it goes back; these fail for no part of a mapping.
	if before > 0 {
		_ = unix.MunmapPtr(p, before)
	}
	_ = unix.MunmapPtr(unsafe.Add(p, before+uintptr(size)), hugePage-before)
	return mem, nil
}

// sparseEnd is how far boot data and small kernels reach: a page here and there, for which
// clearing a huge page would take longer than all of the setup.
const sparseEnd = 16 << 20

func (m *memory) add(s Span, mem []byte) {
	if skip := sparseEnd - min(uint64(s.Base), sparseEnd); skip < s.Size {
		// Offered, not promised: a kernel without huge pages refuses, and nothing changes.
		_ = unix.Madvise(mem[skip:], unix.MADV_HUGEPAGE)
	}
	m.spans, m.maps = append(m.spans, s), append(m.maps, mem)
}

// mapSealed maps a memfd of size bytes that nobody can shrink: a mapping whose file is cut
// short kills the process that reads it.
func mapSealed(name string, size uint64) ([]byte, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, err
	}
	p, err := unix.MmapPtr(fd, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), size), nil
}

// regions returns the first n spans as guest memory.
func (m *memory) regions(n int) (*guestmem.Memory, error) {
	regions := make([]guestmem.Region, n)
	for i := range regions {
		regions[i] = guestmem.Region{Base: m.spans[i].Base, Mem: m.maps[i]}
	}
	return guestmem.New(regions...)
}

// install makes each span a KVM memory slot: KVM API, 4.35 KVM_SET_USER_MEMORY_REGION.
func (m *memory) install(vmFD int) error {
	for i, s := range m.spans {
		slot := &kvm.UserspaceMemoryRegion{
			Slot:          uint32(i),
			GuestPhysAddr: uint64(s.Base),
			MemorySize:    s.Size,
			UserspaceAddr: uint64(uintptr(unsafe.Pointer(&m.maps[i][0]))),
		}
		if err := ioctlPtr(vmFD, kvm.IIOW(reqSetUserMemory, unsafe.Sizeof(*slot)), slot); err != nil {
			return fmt.Errorf("%w: memory slot %d, %d bytes at %v: %w", ErrSetup, i, s.Size, s.Base, err)
		}
	}
	return nil
}

func (m *memory) unmap() {
	for _, mem := range m.maps {
		_ = unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem))) // fails only for what is no mapping
	}
	m.spans, m.maps = nil, nil
}
