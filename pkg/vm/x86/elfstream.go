package x86

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// headerRoom is how far into a stream its headers may reach. A vmlinux has 344 bytes of them.
const headerRoom = 4096

// loadELFStream loads a 64-bit ELF executable such as vmlinux from a stream, as ELF does from a file:
// each PT_LOAD segment straight into guest memory, in the order of the file. The rest is thrown away,
// but read to its end, where a decompressor finds its checksum. It fails with vm.ErrKernel.
func loadELFStream(r io.Reader, ram *guestmem.Memory) (entry, end guestmem.Addr, err error) {
	head := make([]byte, headerRoom)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF { // those by themselves mean a small file
		return 0, 0, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	f, err := elfHeaders(head[:n])
	if err != nil {
		return 0, 0, err
	}
	segments, end, err := loadable(f, ram)
	if err != nil {
		return 0, 0, err
	}
	whole := io.MultiReader(bytes.NewReader(head[:n]), r)
	if err := fillSegments(whole, segments, ram); err != nil {
		return 0, 0, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return 0, 0, fmt.Errorf("%w: behind its segments: %w", vm.ErrKernel, err)
	}
	return guestmem.Addr(f.Entry), end, nil
}

// elfHeaders reads the ELF header and the program headers from a file's first bytes. debug/elf wants
// the section headers too, which are at the file's end: it is shown a file without them.
func elfHeaders(head []byte) (*elf.File, error) {
	const offShoff, offShnum, headerEnd = 0x28, 0x3c, 0x40 // of a 64-bit file
	if len(head) >= headerEnd {
		head = bytes.Clone(head)
		clear(head[offShoff : offShoff+8])
		clear(head[offShnum:headerEnd]) // e_shnum, e_shstrndx
	}
	f, err := elf.NewFile(bytes.NewReader(head))
	if err != nil {
		return nil, fmt.Errorf("%w: no ELF file with its headers in its first %d bytes: %w", vm.ErrKernel, headerRoom, err)
	}
	return f, nil
}

// loadable returns the segments of an x86_64 kernel that are to be loaded and where they end in
// memory. It fails with vm.ErrKernel where f is no such kernel, or ram has no room for it.
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
		switch {
		case p.Filesz > p.Memsz:
			return nil, 0, fmt.Errorf("%w: segment %d has %d bytes in the file and %d in memory",
				vm.ErrKernel, i, p.Filesz, p.Memsz)
		case p.Paddr < kernelFloor:
			return nil, 0, fmt.Errorf("%w: segment %d loads at 0x%x, the lowest address is 0x%x",
				vm.ErrKernel, i, p.Paddr, kernelFloor)
		}
		if _, err := ram.Window(guestmem.Addr(p.Paddr), p.Memsz); err != nil {
			return nil, 0, fmt.Errorf("%w: segment %d takes 0x%x bytes at 0x%x, more than the guest has there: %w",
				vm.ErrKernel, i, p.Memsz, p.Paddr, err)
		}
		entered = entered || f.Entry-p.Paddr < p.Memsz
		end = max(end, guestmem.Addr(p.Paddr+p.Memsz))
		segments = append(segments, p)
	}
	if !entered {
		return nil, 0, fmt.Errorf("%w: its entry point 0x%x is in none of its segments", vm.ErrKernel, f.Entry)
	}
	return segments, end, nil
}

// fillSegments reads segments from a stream of the whole file into ram. What the file leaves out of a
// segment is zero already: RAM is fresh.
func fillSegments(file io.Reader, segments []*elf.Prog, ram *guestmem.Memory) error {
	segments = slices.DeleteFunc(slices.Clone(segments), func(p *elf.Prog) bool { return p.Filesz == 0 })
	slices.SortStableFunc(segments, func(a, b *elf.Prog) int { return cmp.Compare(a.Off, b.Off) })
	var at uint64 // in the file
	for _, p := range segments {
		if p.Off < at {
			return fmt.Errorf("%w: a segment begins at file offset 0x%x, in one that ends at 0x%x", vm.ErrKernel, p.Off, at)
		}
		_, err := io.CopyN(io.Discard, file, int64(p.Off-at))
		if err == nil {
			err = ram.Fill(file, guestmem.Addr(p.Paddr), p.Filesz)
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("%w: a segment of 0x%x bytes at file offset 0x%x: %w", vm.ErrKernel, p.Filesz, p.Off, err)
		}
		at = p.Off + p.Filesz
	}
	return nil
}
