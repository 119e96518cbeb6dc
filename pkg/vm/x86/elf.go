package x86

import (
	"debug/elf"
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// kernelFloor is the lowest address that a kernel may be loaded at: boot data lies below.
const kernelFloor = 1 << 20

// ELF loads a 64-bit ELF executable such as vmlinux: each PT_LOAD segment at its physical
// address, straight from the file into guest memory. The entry point is a physical address.
type ELF struct{ File io.ReaderAt }

// Board implements vm.Loader.
func (ELF) Board() vm.Board { return Board{} }

// Load implements vm.Loader; it fails with vm.ErrKernel.
func (e ELF) Load(ram *guestmem.Memory) (k vm.Kernel, err error) {
	f, err := elf.NewFile(e.File)
	if err != nil {
		return k, fmt.Errorf("%w: no ELF file: %w", vm.ErrKernel, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		return k, fmt.Errorf("%w: it is %v, %v, %v; a kernel for this board is ELFCLASS64, %v, ET_EXEC", vm.ErrKernel, f.Class, f.Machine, f.Type, elf.EM_X86_64)
	}
	entered := false
	for i, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		switch {
		case p.Filesz > p.Memsz:
			return k, fmt.Errorf("%w: segment %d has %d bytes in the file and %d in memory", vm.ErrKernel, i, p.Filesz, p.Memsz)
		case p.Paddr < kernelFloor:
			return k, fmt.Errorf("%w: segment %d loads at 0x%x, the lowest address is 0x%x", vm.ErrKernel, i, p.Paddr, kernelFloor)
		}
		// What the file leaves out is zero already: RAM is fresh.
		if _, err := ram.Window(guestmem.Addr(p.Paddr), p.Memsz); err != nil {
			return k, fmt.Errorf("%w: %w: segment %d takes 0x%x bytes at 0x%x, more than the guest has there: %w", vm.ErrKernel, vm.ErrRoom, i, p.Memsz, p.Paddr, err)
		}
		if err := ram.Fill(p.Open(), guestmem.Addr(p.Paddr), p.Filesz); err != nil {
			return k, fmt.Errorf("%w: segment %d, 0x%x bytes at file offset 0x%x: %w; the file is cut short", vm.ErrKernel, i, p.Filesz, p.Off, err)
		}
		entered = entered || f.Entry-p.Paddr < p.Memsz
		k.End = max(k.End, guestmem.Addr(p.Paddr+p.Memsz))
	}
	if !entered {
		return k, fmt.Errorf("%w: its entry point 0x%x is in none of its segments", vm.ErrKernel, f.Entry)
	}
	k.Entry = guestmem.Addr(f.Entry)
	return k, nil
}
