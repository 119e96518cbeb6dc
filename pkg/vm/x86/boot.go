package x86

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/e820"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Where the boot data lies: conventional memory, which the kernel leaves alone until it has
// taken what it needs.
const (
	gdtAddr        = 0x6000
	gdtSize        = 4 * 8
	bootParamsAddr = 0x7000
	stackTop       = 0x8ff0
	pml4Addr       = 0x9000
	pdptAddr       = 0xa000
	pdAddr         = 0xb000
	cmdlineAddr    = 0x20000
	cmdlineMax     = 2047       // bytes, without the NUL; COMMAND_LINE_SIZE of an x86 Linux is 2048
	initrdMax      = 0x37ffffff // the highest address of an initrd that every protocol allows
)

// Selectors that the 64-bit boot protocol names.
const (
	bootCS = 0x10
	bootDS = 0x18
)

// Fields of the zero page: Linux boot protocol, "The real-mode kernel header".
const (
	offRSDP       = 0x070 // u64, address of the ACPI tables' root
	offSetup      = 0x1f1 // where the setup header begins
	offBootFlag   = 0x1fe // u16
	offHeader     = 0x202 // u32
	offVersion    = 0x206 // u16
	offLoaderType = 0x210 // u8
	offLoadFlags  = 0x211 // u8
	offInitrd     = 0x218 // u32, address
	offInitrdSize = 0x21c // u32
	offCmdlinePtr = 0x228 // u32
	offInitrdMax  = 0x22c // u32
	offCmdlineLen = 0x238 // u32, in a setup header the most that the kernel takes

	bootFlag     = 0xaa55
	headerMagic  = 0x53726448 // "HdrS"
	bootProtocol = 0x020c
	loaderOther  = 0xff
	loadedHigh   = 1
)

var le = binary.LittleEndian

// loadInitrd writes the initrd to the top of what a kernel can reach below the MMIO hole.
func loadInitrd(ram *guestmem.Memory, layout *e820.Layout, k vm.Kernel, initrd vm.Initrd) (vm.Span, error) {
	if initrd == nil {
		return vm.Span{}, nil
	}
	most := uint64(initrdMax)
	if len(k.Header) >= offInitrdMax+4-offSetup {
		most = uint64(le.Uint32(k.Header[offInitrdMax-offSetup:]))
	}
	size, end := initrd.Size(), min(layout.Low.End(), most+1)
	if free := end - min(end, uint64(k.End)+e820.PageSize); size > free {
		return vm.Span{}, fmt.Errorf("%w: the initrd: %w: it takes %d bytes, %d are free above the kernel",
			vm.ErrKernel, vm.ErrRoom, size, free)
	}
	at := vm.Span{Base: guestmem.Addr((end - size) &^ (e820.PageSize - 1)), Size: size}
	w := ram.Writer(at.Base, size)
	n, err := initrd.WriteTo(w)
	if err == nil && uint64(n) != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return vm.Span{}, fmt.Errorf("%w: the initrd, %d of %d bytes: %w", vm.ErrSetup, n, size, err)
	}
	return at, nil
}

// loadBootData writes what the 64-bit boot protocol expects beside the kernel: the zero page
// with the memory map, the command line, a GDT, and page tables that map the first GiB to
// itself.
func loadBootData(ram *guestmem.Memory, layout *e820.Layout, k vm.Kernel, initrd vm.Span, cmdline string) error {
	zero := make([]byte, e820.BootParamsSize)
	most := uint32(cmdlineMax)
	if k.Header != nil {
		copy(zero[offSetup:], k.Header)
		most = min(most, le.Uint32(zero[offCmdlineLen:]))
	} else {
		le.PutUint16(zero[offBootFlag:], bootFlag)
		le.PutUint32(zero[offHeader:], headerMagic)
		le.PutUint16(zero[offVersion:], bootProtocol)
	}
	if uint64(len(cmdline)) > uint64(most) {
		return fmt.Errorf("%w: %d bytes, this kernel takes at most %d", vm.ErrCmdline, len(cmdline), most)
	}
	if strings.ContainsAny(cmdline, "\x00\n") {
		return fmt.Errorf("%w: %q has a NUL or a newline in it", vm.ErrCmdline, cmdline)
	}
	le.PutUint64(zero[offRSDP:], rsdpAddr)
	zero[offLoaderType] = loaderOther
	zero[offLoadFlags] |= loadedHigh
	le.PutUint32(zero[offInitrd:], uint32(initrd.Base))
	le.PutUint32(zero[offInitrdSize:], uint32(initrd.Size))
	le.PutUint32(zero[offCmdlinePtr:], cmdlineAddr)
	le.PutUint32(zero[offCmdlineLen:], uint32(len(cmdline)))
	if err := e820.Encode(layout.Map, zero); err != nil {
		return err
	}
	for _, part := range []struct {
		addr guestmem.Addr
		data []byte
	}{
		{gdtAddr, words(0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff)}, // flat code64 and data: SDM volume 3, section 3.4.5
		{bootParamsAddr, zero},
		{pml4Addr, words(pdptAddr | 3)}, // present, writable: SDM volume 3, section 4.5
		{pdptAddr, words(pdAddr | 3)},
		{pdAddr, identityPD()},
		{cmdlineAddr, append([]byte(cmdline), 0)},
	} {
		if err := ram.Write(part.data, part.addr); err != nil {
			return fmt.Errorf("%w: boot data: %w", vm.ErrSetup, err)
		}
	}
	return nil
}

func words(ws ...uint64) []byte {
	var b []byte
	for _, w := range ws {
		b = le.AppendUint64(b, w)
	}
	return b
}

// identityPD is a page directory that maps the first GiB to itself by 2 MiB pages.
func identityPD() []byte {
	b := make([]byte, 0, 4096)
	for i := range uint64(512) {
		b = le.AppendUint64(b, i<<21|0x83) // present, writable, page size
	}
	return b
}
