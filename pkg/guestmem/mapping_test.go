package guestmem_test

import (
	"os"
	"testing"
	"unsafe"

	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// What a guest has in its memory is in none of our core dumps.
func TestCoreDumpsLeaveGuestMemoryOut(t *testing.T) {
	private, err := guestmem.MapAnonymous(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(private)
	shared, file, err := guestmem.MapShared("test", 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(shared)
	defer file.Close()
	all, err := smaps.Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, mem := range map[string][]byte{"private": private, "shared": shared} {
		left := uint64(len(mem))
		start := uint64(uintptr(unsafe.Pointer(&mem[0])))
		for _, m := range all {
			if m.NoDump && m.Start < start+uint64(len(mem)) && m.End > start {
				left -= min(m.End, start+uint64(len(mem))) - max(m.Start, start)
			}
		}
		if left > 0 {
			t.Errorf("%s: %d bytes of %d are dumped", name, left, len(mem))
		}
	}
}
