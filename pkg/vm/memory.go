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
		mem, err := unix.Mmap(-1, 0, int(s.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
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
	return unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
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
		_ = unix.Munmap(mem) // fails only for a mapping that is not one
	}
	m.spans, m.maps = nil, nil
}
