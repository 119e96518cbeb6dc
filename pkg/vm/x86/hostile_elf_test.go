package x86_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// segment is a PT_LOAD program header: where it is in the file and in memory.
type segment struct{ off, paddr, filesz, memsz uint64 }

// elfKernel is an ELF kernel that is entered at 1 MiB: its headers, then content bytes of code.
func elfKernel(content int, segments ...segment) []byte {
	le := binary.LittleEndian
	b := make([]byte, 64, 64+56*len(segments)+content)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], 1<<20) // entry
	le.PutUint64(b[32:], 64)    // program headers
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], uint16(len(segments)))
	le.PutUint16(b[58:], 64)
	for _, s := range segments {
		p := make([]byte, 56)
		le.PutUint32(p, 1) // PT_LOAD
		for i, v := range []uint64{s.off, s.paddr, s.paddr, s.filesz, s.memsz} {
			le.PutUint64(p[8+8*i:], v)
		}
		b = append(b, p...)
	}
	return append(b, bytes.Repeat([]byte{0xf4}, content)...)
}

// loads loads an ELF kernel into mem, which lies at base.
func loads(t *testing.T, image []byte, base guestmem.Addr, mem []byte) (vm.Kernel, error) {
	t.Helper()
	ram, err := guestmem.New(guestmem.Region{Base: base, Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	return x86.ELF{File: bytes.NewReader(image)}.Load(ram)
}

// The boot's page tables map the first GiB. A segment above it could not be reached: it is refused by name, though
// the guest has memory there.
func TestSegmentAboveWhatIsMapped(t *testing.T) {
	first := segment{64, 1 << 20, 64, 64}
	for name, s := range map[string]segment{
		"above":   {64, 1 << 30, 16, 4096},
		"across":  {64, 1<<30 - 4096, 16, 4097},
		"wraps":   {64, 1<<30 - 4096, 16, ^uint64(0)},
		"the top": {64, ^uint64(0), 1, 1},
	} {
		ram, err := guestmem.New(guestmem.Region{Base: 1 << 20, Mem: make([]byte, 1<<20)},
			guestmem.Region{Base: 1<<30 - 8192, Mem: make([]byte, 1<<20)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (x86.ELF{File: bytes.NewReader(elfKernel(0, first, s))}).Load(ram); !errors.Is(err, vm.ErrKernel) ||
			errors.Is(err, vm.ErrRoom) ||
			!strings.Contains(err.Error(), "segment 1 takes") || !strings.Contains(err.Error(), "has to end by 0x40000000") {
			t.Errorf("%s: %v", name, err)
		}
		s = segment{64, 1<<30 - 4096, 16, 4096} // up to the very end
		if k, err := (x86.ELF{File: bytes.NewReader(elfKernel(0, first, s))}).Load(ram); err != nil || k.End != 1<<30 {
			t.Errorf("up to the end: %v, %v", k.End, err)
		}
	}
	image := bzImage(reset)
	binary.LittleEndian.PutUint64(image[0x258:], 1<<30)
	ram, err := guestmem.New(guestmem.Region{Base: 1 << 30, Mem: make([]byte, 4<<20)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (x86.BzImage{File: bytes.NewReader(image)}).Load(ram); !errors.Is(err, vm.ErrKernel) ||
		!strings.Contains(err.Error(), "has to end by 0x40000000") {
		t.Errorf("a bzImage above: %v", err)
	}
}

// What one segment loads no other one wipes out or loads over, whatever their order in the file.
func TestSegmentsThatOverlap(t *testing.T) {
	code := segment{64, 1 << 20, 64, 8192}
	for name, other := range map[string]segment{
		"bss over it":     {64, 1 << 20, 0, 4096},
		"data in its bss": {64, 1<<20 + 4096, 16, 16},
		"from behind":     {64, 1<<20 + 8191, 1, 4096},
		"all over it":     {64, 1 << 20, 0, 1 << 19},
	} {
		for _, order := range [][]segment{{code, other}, {other, code}} {
			if _, err := loads(t, elfKernel(64, order...), 1<<20, make([]byte, 1<<20)); !errors.Is(err, vm.ErrKernel) ||
				!strings.Contains(err.Error(), "begins in one that ends at 0x") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, other := range []segment{{64, 1<<20 + 8192, 16, 4096}, {64, 1<<20 + 4096, 0, 0}} {
		if _, err := loads(t, elfKernel(64, code, other), 1<<20, make([]byte, 1<<20)); err != nil {
			t.Errorf("side by side: %v", err)
		}
	}
}

// 65,535 segments of all the memory each are refused before any is loaded, and cost next to nothing.
func TestManyLargeSegments(t *testing.T) {
	const size = 1 << 20
	all := make([]segment, 65535)
	for i := range all {
		all[i] = segment{64, 1 << 20, size, size}
	}
	mem := make([]byte, size)
	image := elfKernel(size, all...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := loads(t, image, 1<<20, mem)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, vm.ErrKernel) || !strings.Contains(err.Error(), "begins in one that ends") {
		t.Error(err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("it took %d bytes to refuse it", n)
	}
	if !bytes.Equal(mem, make([]byte, size)) {
		t.Error("something was loaded")
	}
}
