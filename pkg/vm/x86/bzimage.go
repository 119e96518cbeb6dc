package x86

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// More of the setup header: Linux boot protocol, "The real-mode kernel header".
const (
	offSetupSects  = 0x1f1 // u8, sectors of real-mode code behind the first; 0 means 4
	offSyssize     = 0x1f4 // u32, 16-byte units of the protected-mode kernel
	offJump        = 0x200 // the header ends 0x202 + the byte behind the jump's opcode
	offXLoadFlags  = 0x236 // u16
	offPrefAddress = 0x258 // u64, where the kernel wants to lie
	offInitSize    = 0x260 // u32, bytes that it uses from there on until it knows its memory map
	setupEnd       = 0x264 // the least that is read

	sector         = 512
	paragraph      = 16
	kernel64       = 1      // in xloadflags: there is a 64-bit entry point
	entry64        = 0x200  // where, from the kernel's start
	protocol64     = 0x020c // the first protocol with xloadflags
	maxSetupHeader = 0x290 - offSetup
)

// BzImage loads an x86_64 bzImage at its preferred address. It is entered at its 64-bit entry point, where it unpacks
// itself.
type BzImage struct{ File io.ReaderAt }

// Board implements vm.Loader.
func (BzImage) Board() vm.Board { return Board{} }

// header reads the image's first bytes, setupEnd of them at least, and judges them.
func (b BzImage) header() ([]byte, error) {
	head := make([]byte, offSetup+maxSetupHeader)
	n, err := b.File.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	if n < setupEnd {
		return nil, fmt.Errorf("%w: a bzImage of %d bytes; it is cut short", vm.ErrKernel, n)
	}
	if v := le.Uint16(head[offVersion:]); le.Uint32(head[offHeader:]) != headerMagic || v < protocol64 ||
		le.Uint16(head[offXLoadFlags:])&kernel64 == 0 {
		return nil, fmt.Errorf("%w: no bzImage with a 64-bit entry point (boot protocol 0x%x, 0x%x and the flag are needed)",
			vm.ErrKernel, v, protocol64)
	}
	return head, nil
}

// setup is the setup header that a kernel gets back, from the image's first bytes.
func setup(head []byte) []byte {
	end := min(offHeader+int(head[offJump+1]), len(head))
	return head[offSetup:max(end, setupEnd)]
}

// LoadUnpacked unpacks the kernel on the host and loads it as an ELF file, with that file's entry point. It fails with
// ErrPayload if only the guest can unpack it, otherwise with vm.ErrKernel.
func (b BzImage) LoadUnpacked(ram *guestmem.Memory) (k vm.Kernel, err error) {
	head, err := b.header()
	if err != nil {
		return k, err
	}
	// What it takes to unpack by itself bounds what it unpacks to.
	base, need := le.Uint64(head[offPrefAddress:]), uint64(le.Uint32(head[offInitSize:]))
	if err := checkPlace(base, need, ram); err != nil {
		return k, fmt.Errorf("%w: it takes %d bytes at 0x%x: %w", vm.ErrKernel, need, base, err)
	}
	r, err := payload(b.File, head)
	if err != nil {
		return k, err
	}
	defer r.Close()
	entry, end, err := loadELFStream(r, ram)
	return vm.Kernel{Entry: entry, End: end, Header: setup(head)}, err
}

// Load implements vm.Loader; it fails with vm.ErrKernel.
func (b BzImage) Load(ram *guestmem.Memory) (k vm.Kernel, err error) {
	head, err := b.header()
	if err != nil {
		return k, err
	}
	sectors := int64(head[offSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors + 1) * sector
	size := uint64(le.Uint32(head[offSyssize:])) * paragraph
	base := le.Uint64(head[offPrefAddress:])
	need := max(uint64(le.Uint32(head[offInitSize:])), size)
	if size <= entry64 {
		return k, fmt.Errorf("%w: a bzImage of %d bytes ends before its entry point", vm.ErrKernel, size)
	}
	if err := checkPlace(base, need, ram); err != nil {
		return k, fmt.Errorf("%w: it takes %d bytes at 0x%x: %w", vm.ErrKernel, need, base, err)
	}
	// The last paragraph may be short in the file.
	if err := ram.Fill(io.NewSectionReader(b.File, start, int64(size-paragraph+1)), guestmem.Addr(base),
		size-paragraph+1); err != nil {
		return k, fmt.Errorf("%w: %d bytes of kernel at file offset %d: %w; the file is cut short",
			vm.ErrKernel, size, start, err)
	}
	rest := make([]byte, paragraph-1)
	n, _ := b.File.ReadAt(rest, start+int64(size)-paragraph+1)
	if err := ram.Write(rest[:n], guestmem.Addr(base+size-paragraph+1)); err != nil {
		return k, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	return vm.Kernel{
		Entry:  guestmem.Addr(base + entry64),
		End:    guestmem.Addr(base + need),
		Header: setup(head),
	}, nil
}

// Open determines what kind of kernel a file is by its content. It fails with vm.ErrKernel if the file is not a kernel,
// or not one for this board.
func Open(file io.ReaderAt) (vm.Loader, error) {
	head := make([]byte, setupEnd)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	switch {
	case n >= 4 && string(head[:4]) == "\x7fELF":
		return ELF{file}, nil
	case n >= offHeader+4 && le.Uint32(head[offHeader:]) == headerMagic:
		return BzImage{file}, nil
	case n >= 0x40 && binary.BigEndian.Uint32(head[0x38:]) == 0x41524d64: // "ARMd": arm64 boot protocol
		return nil, fmt.Errorf("%w: it is an arm64 Image, this board is x86_64", vm.ErrKernel)
	}
	return nil, fmt.Errorf("%w: neither a bzImage nor an ELF file", vm.ErrKernel)
}
