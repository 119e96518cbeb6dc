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
	f, err := elfHeaders(bytes.NewReader(head[:n]))
	if err != nil {
		return 0, 0, fmt.Errorf("%w: no ELF file with its headers in its first %d bytes: %w", vm.ErrKernel, headerRoom,
			err)
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
