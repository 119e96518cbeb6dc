package introspect

import (
	"errors"
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// ErrUnmapped means that a kernel's page tables map nothing at an address, or are broken.
var ErrUnmapped = errors.New("the guest's page tables do not map it")

// kernelHalf is where kernels' addresses begin, with the largest address space that there is, of 57 bits.
const kernelHalf = 0xff00_0000_0000_0000

// format describes page tables: of x86_64, Intel SDM volume 3, section 4.5; of arm64, Arm Architecture Reference
// Manual, section D8.3.
type format struct {
	page   uint   // a page has 2^page bytes, and a table as many: an entry has 8 bytes
	levels int    // of tables
	bits   uint   // of an address that are translated; the others are all 1
	mask   uint64 // what of an entry is an address; arm64's has more bits of it, but only above what guests have
	leaf   func(entry uint64, level int) bool
}

const (
	present    = 1 << 0 // in an entry of either architecture
	x86Large   = 1 << 7
	x86Mask    = 0x000f_ffff_ffff_f000
	arm64Table = 1 << 1
	arm64Mask  = 0x0000_ffff_ffff_f000
)

func x86Leaf(entry uint64, level int) bool {
	return level == 0 || level <= 2 && entry&x86Large != 0
}

func arm64Leaf(entry uint64, level int) bool {
	return level == 0 || entry&arm64Table == 0
}

// formats are those that a kernel of an architecture may use. The larger ones are tried last.
func formats(arch string, page uint) []format {
	if arch == "x86_64" {
		return []format{{12, 4, 48, x86Mask, x86Leaf}, {12, 5, 57, x86Mask, x86Leaf}}
	}
	switch page {
	case 14:
		return []format{arm64(14, 2, 36), arm64(14, 3, 47), arm64(14, 4, 48), arm64(14, 4, 52)}
	case 16:
		return []format{arm64(16, 2, 42), arm64(16, 3, 48), arm64(16, 3, 52)}
	}
	return []format{arm64(12, 3, 39), arm64(12, 4, 48), arm64(12, 5, 52)}
}

func arm64(page uint, levels int, bits uint) format {
	return format{page, levels, bits, arm64Mask, arm64Leaf}
}

// tables are a guest's page tables, which it may change at any time, and into anything: a translation takes one read
// for each level, and what comes out of it is only an address to be checked.
type tables struct {
	format
	mem  *guestmem.Memory
	root guestmem.Addr
}

// translate returns where the byte at an address lies. It fails with ErrUnmapped.
func (t *tables) translate(va uint64) (guestmem.Addr, error) {
	if va>>t.bits != ^uint64(0)>>t.bits {
		return 0, fmt.Errorf("%w: 0x%x is no kernel's address of %d bits", ErrUnmapped, va, t.bits)
	}
	va &= 1<<t.bits - 1
	perTable := t.page - 3
	table := uint64(t.root)
	for level := t.levels - 1; ; level-- {
		shift := t.page + uint(level)*perTable
		index := va >> shift
		if level < t.levels-1 {
			index &= 1<<perTable - 1
		}
		word, err := t.mem.Uint64(guestmem.Addr(table + 8*index))
		if err != nil {
			return 0, fmt.Errorf("%w: a table at 0x%x: %w", ErrUnmapped, table, err)
		}
		entry := word.Load()
		if entry&present == 0 {
			return 0, fmt.Errorf("%w: 0x%x, at level %d", ErrUnmapped, va, level)
		}
		if t.leaf(entry, level) {
			offset := uint64(1)<<shift - 1
			return guestmem.Addr(entry&t.mask&^offset | va&offset), nil
		}
		table = entry & t.mask &^ (1<<t.page - 1)
	}
}

// smallest is the size of the smallest page that there is.
const smallest = 4096

// read copies len(dst) bytes at an address. It fails with ErrUnmapped, or guestmem.ErrOutside.
func (t *tables) read(dst []byte, va uint64) error {
	for len(dst) > 0 {
		pa, err := t.translate(va)
		if err != nil {
			return err
		}
		n := min(uint64(len(dst)), smallest-va%smallest)
		if err := t.mem.Read(dst[:n], pa); err != nil {
			return err
		}
		dst, va = dst[n:], va+n
	}
	return nil
}
