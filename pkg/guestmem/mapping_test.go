package guestmem_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

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

// Memory that is made ready keeps its content, and nothing is spent on what lies around it.
func TestPopulate(t *testing.T) {
	const size, huge = 32 << 20, 2 << 20
	mem, file, err := guestmem.MapShared("test", size)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(mem)
	defer file.Close()
	m, err := guestmem.New(guestmem.Region{Base: 1 << 20, Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Write([]byte("content"), 1<<20+5*huge); err != nil {
		t.Fatal(err)
	}
	const from = 3*huge + huge/2
	m.Populate(1<<20+from, 5*huge)
	if n := resident(t, mem[from:][:5*huge]); n != 5*huge {
		t.Errorf("%d bytes are there, want %d", n, 5*huge)
	}
	if n := resident(t, mem[:from]) + resident(t, mem[from+5*huge:]); n != 0 {
		t.Errorf("%d bytes are there around it", n)
	}
	if got := string(mem[5*huge:][:7]); got != "content" {
		t.Errorf("the memory has %q", got)
	}
	m.Populate(1<<20+size-4096, 8192) // beyond its end
	if n := resident(t, mem[9*huge:]); n != 0 {
		t.Errorf("%d bytes are there for a range that is not RAM", n)
	}
}

// A file that ends early costs no more memory than was made ready for it at a time.
func TestFillFromAShortFile(t *testing.T) {
	const size = 256 << 20
	mem, file, err := guestmem.MapShared("test", size)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(mem)
	defer file.Close()
	m, err := guestmem.New(guestmem.Region{Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Fill(strings.NewReader("short"), 0, size); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	if n := resident(t, mem); n > 64<<20 {
		t.Errorf("%d bytes are there", n)
	}
}

// resident returns how many bytes of a mapping have pages.
func resident(t *testing.T, mem []byte) (n int) {
	t.Helper()
	const page = 4096
	there := make([]byte, (len(mem)+page-1)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)),
		uintptr(unsafe.Pointer(&there[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for _, b := range there {
		n += page * int(b&1)
	}
	return n
}
