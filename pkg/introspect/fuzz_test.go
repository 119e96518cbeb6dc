package introspect_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
)

// guest is a kernel's memory, and its bytes.
type guest struct {
	mem   *guestmem.Memory
	bytes []byte
}

func newGuest(t testing.TB, arch string) guest {
	t.Helper()
	region := running(arch).Region(t)
	return guest{memoryOf(t, region), region.Mem}
}

// patch changes 8-byte words, by patches of 4 bytes that say where, and 8 bytes. It returns what undoes that.
func (g guest) patch(patches []byte) (undo func()) {
	before := map[uint32]byte{}
	for ; len(patches) >= 12; patches = patches[12:] {
		at := binary.LittleEndian.Uint32(patches) % (kerneltest.Size - 8)
		for i, b := range patches[4:12] {
			where := at + uint32(i)
			if _, again := before[where]; !again {
				before[where] = g.bytes[where]
			}
			g.bytes[where] = b
		}
	}
	return func() {
		for where, b := range before {
			g.bytes[where] = b
		}
	}
}

// patch is where what is written.
func patch(at uint32, value uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, at), value)
}

// hangLimit is generous, for a host may be busy.
const hangLimit = 30 * time.Second

// What a guest writes over its kernel, its symbols, its types, its page tables and its run queues, neither panics nor
// hangs.
func FuzzHostileMemory(f *testing.F) {
	for _, at := range []uint32{0x1000, 0x2000, 0x3000, 0x10000, 0x10008, 0x11000, 0x12000, 0x40000, 0x40008, 0x40010,
		0x40100, 0x100000, 0x100ff8, 0x110000, 0x120000, 0x300010, 0x380040} {
		for _, value := range []uint64{0, ^uint64(0), 0x1100003, 1 << 31, 0xffffffff81000000} {
			f.Add(true, patch(at, value))
			f.Add(false, patch(at, value))
		}
	}
	guests := map[string]guest{"x86_64": newGuest(f, "x86_64"), "arm64": newGuest(f, "arm64")}
	f.Fuzz(func(t *testing.T, x86 bool, patches []byte) {
		arch := map[bool]string{true: "x86_64", false: "arm64"}[x86]
		mem := guests[arch].mem
		defer guests[arch].patch(patches)()
		start := time.Now()
		k, err := introspect.ReadMemory(t.Context(), mem, arch)
		if err == nil {
			if v, err := k.Open(mem); err == nil {
				for _, address := range []uint64{0, 1 << 31, 0xffffffff81000005, ^uint64(0)} {
					_ = v.Symbols().Name(address)
				}
			}
			cpus, _ := look(k, mem, 32)
			for _, c := range cpus {
				if len(c.Comm) > 16 {
					t.Errorf("a name of %d bytes", len(c.Comm))
				}
			}
		}
		if took := time.Since(start); took > hangLimit {
			t.Errorf("it took %v", took)
		}
	})
}
