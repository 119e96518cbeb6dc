package x86

import (
	"cmp"
	"debug/elf"
	"fmt"
	"io"
	"slices"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// A kernel lies between boot data and the end of what the boot's page tables map: it runs in them until it has its
// own. See loadBootData.
const (
	kernelFloor = 1 << 20
	kernelCeil  = 1 << 30
)

// ELF loads a 64-bit ELF executable such as vmlinux: each PT_LOAD segment at its physical address, straight from the
// file into guest memory. The entry point is a physical address. Segments may not overlap, so a file can't cause more
// work than there is memory for a kernel.
type ELF struct{ File io.ReaderAt }

// Board implements vm.Loader.
func (ELF) Board() vm.Board { return Board{} }

// Load implements vm.Loader; it fails with vm.ErrKernel.
func (e ELF) Load(ram *guestmem.Memory) (k vm.Kernel, err error) {
	f, err := elfHeaders(e.File)
	if err != nil {
		return k, fmt.Errorf("%w: no ELF file: %w", vm.ErrKernel, err)
	}
	segments, end, err := loadable(f, ram)
	if err != nil {
		return k, err
	}
	for _, p := range segments { // what the file leaves out is zero already: RAM is fresh
		content := io.NewSectionReader(e.File, int64(p.Off), int64(p.Filesz))
		if err := ram.Fill(content, guestmem.Addr(p.Paddr), p.Filesz); err != nil {
			return k, fmt.Errorf("%w: a segment of 0x%x bytes at file offset 0x%x: %w; the file is cut short",
				vm.ErrKernel, p.Filesz, p.Off, err)
		}
	}
	return vm.Kernel{Entry: guestmem.Addr(f.Entry), End: end}, nil
}

// elfHeaders reads the ELF header and the program headers of a file. debug/elf wants the section headers too, which are
// at the end of the file, and whose names may be of any length: it is shown a file without them.
func elfHeaders(file io.ReaderAt) (*elf.File, error) { return elf.NewFile(withoutSections{file}) }

// withoutSections is a 64-bit ELF file whose header names no sections.
type withoutSections struct{ file io.ReaderAt }

// ReadAt implements io.ReaderAt.
func (w withoutSections) ReadAt(p []byte, off int64) (int, error) {
	const offShoff, offShnum, headerEnd = 0x28, 0x3c, 0x40
	n, err := w.file.ReadAt(p, off)
	hide := func(from, to int64) {
		for i := max(from, off); i < min(to, off+int64(n)); i++ {
			p[i-off] = 0
		}
	}
	hide(offShoff, offShoff+8)
	hide(offShnum, headerEnd) // e_shnum, e_shstrndx
	return n, err
}

// loadable returns the segments of an x86_64 kernel that are to be loaded, sorted by their place in memory, and where
// they end there. It fails with vm.ErrKernel where f is no such kernel, or the memory has no room for it.
func loadable(f *elf.File, ram *guestmem.Memory) (segments []*elf.Prog, end guestmem.Addr, err error) {
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		return nil, 0, fmt.Errorf("%w: it is %v, %v, %v; a kernel for this board is ELFCLASS64, %v, ET_EXEC",
			vm.ErrKernel, f.Class, f.Machine, f.Type, elf.EM_X86_64)
	}
	entered := false
	for i, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		if err := checkSegment(p.ProgHeader, ram); err != nil {
			return nil, 0, fmt.Errorf("%w: segment %d %w", vm.ErrKernel, i, err)
		}
		entered = entered || f.Entry-p.Paddr < p.Memsz
		segments = append(segments, p)
	}
	if !entered {
		return nil, 0, fmt.Errorf("%w: its entry point 0x%x is in none of its segments", vm.ErrKernel, f.Entry)
	}
	slices.SortStableFunc(segments, func(a, b *elf.Prog) int { return cmp.Compare(a.Paddr, b.Paddr) })
	for _, p := range segments {
		if p.Paddr < uint64(end) {
			return nil, 0, fmt.Errorf("%w: its segment at 0x%x begins in one that ends at %v", vm.ErrKernel, p.Paddr, end)
		}
		end = guestmem.Addr(p.Paddr + p.Memsz)
	}
	return segments, end, nil
}

// checkSegment judges a segment by itself; its error goes on from the segment's name.
func checkSegment(p elf.ProgHeader, ram *guestmem.Memory) error {
	if p.Filesz > p.Memsz {
		return fmt.Errorf("has 0x%x bytes in the file and 0x%x in memory", p.Filesz, p.Memsz)
	}
	if err := checkPlace(p.Paddr, p.Memsz, ram); err != nil {
		return fmt.Errorf("takes 0x%x bytes at 0x%x: %w", p.Memsz, p.Paddr, err)
	}
	return nil
}

// checkPlace says why a kernel can't have n bytes at an address.
func checkPlace(at, n uint64, ram *guestmem.Memory) error {
	switch {
	case at < kernelFloor:
		return fmt.Errorf("the lowest address is 0x%x", kernelFloor)
	case at >= kernelCeil || n > kernelCeil-at:
		return fmt.Errorf("a kernel has to end by 0x%x, where what is mapped for it ends", kernelCeil)
	}
	if _, err := ram.Window(guestmem.Addr(at), n); err != nil {
		return fmt.Errorf("%w: more than the guest has there: %w", vm.ErrRoom, err)
	}
	return nil
}
