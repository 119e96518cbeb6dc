package introspect_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
)

// rawTypes is types as they are written in .BTF, whose names are "rq" and "task_struct".
func rawTypes(types []byte) []byte {
	const names = "\x00rq\x00task_struct\x00"
	b := append([]byte{}, 0x9f, 0xeb, 1, 0)
	for _, v := range []int{24, 0, len(types), len(types), len(names)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return append(append(b, types...), names...)
}

// rawType is one type and its members' words.
func rawType(words ...uint32) (b []byte) {
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

const (
	nameRQ, nameTask  = 1, 4
	kindPointer       = 2 << 24
	kindStruct        = 4 << 24
	kindTypedef       = 8 << 24
	firstType, noType = 1, 0xffffff
)

// Types that a guest made up to keep its host busy, or to make it fail.
func TestHostileTypes(t *testing.T) {
	task := rawType(nameTask, kindStruct, 0)
	chain := append(rawType(nameRQ, kindStruct|1, 8, 0, 3, 0), task...)
	for id := uint32(3); id < 40000; id++ {
		chain = append(chain, rawType(0, kindPointer, id+1)...)
	}
	wide := rawType(nameRQ, kindStruct|1000, 8)
	for range 1000 {
		wide = append(wide, rawType(0, firstType, 0)...) // a member without a name, of the structure itself
	}
	for name, types := range map[string][]byte{
		"none":               nil,
		"a chain":            chain,
		"nested without end": append(wide, task...),
		"a type that is itself": append(append(rawType(nameRQ, kindStruct|1, 8, 0, 3, 0), task...),
			rawType(0, kindTypedef, 3)...),
		"a type that is not there": append(rawType(nameRQ, kindStruct|1, 8, 0, noType, 0), task...),
		"cut short":                append(rawType(nameRQ, kindStruct|50, 8), task...),
		"an unknown kind":          append(rawType(nameRQ, 31<<24, 8), task...),
	} {
		region := running("x86_64").Region(t)
		copy(region.Mem[kerneltest.TypesAt:], rawTypes(types))
		start := time.Now()
		if _, err := introspect.ReadMemory(t.Context(), memoryOf(t, region), "x86_64"); !errors.Is(err, introspect.ErrTypes) {
			t.Errorf("%s: %v, want %v", name, err, introspect.ErrTypes)
		}
		if took := time.Since(start); took > hangLimit {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// Page tables that lead to themselves, to each other, or out of the guest's memory.
func TestHostilePageTables(t *testing.T) {
	for _, arch := range architectures {
		kernel := running(arch)
		mem := kernel.Memory(t)
		k, err := introspect.ReadMemory(t.Context(), mem, arch)
		if err != nil {
			t.Fatal(err)
		}
		v, err := k.Open(mem)
		if err != nil {
			t.Fatal(err)
		}
		root := kernel.Base() + kerneltest.RootAt
		for name, entry := range map[string]uint64{
			"itself": uint64(root) | 3, "outside": 0x7fff_ffff_f003, "the last page": ^uint64(0)&^0x80 | 3, "nothing": 0,
		} {
			for i := range uint64(512) {
				if err := mem.Write(binary.LittleEndian.AppendUint64(nil, entry), root+8*guestmem.Addr(i)); err != nil {
					t.Fatal(err)
				}
			}
			if cpus, err := v.Look(nil, 3); err == nil || len(cpus) > 0 {
				t.Errorf("%s, %s: %v, %v", arch, name, cpus, err)
			}
			if _, err := k.Open(mem); !errors.Is(err, introspect.ErrUnmapped) {
				t.Errorf("%s, %s: %v, want %v", arch, name, err, introspect.ErrUnmapped)
			}
		}
	}
}
