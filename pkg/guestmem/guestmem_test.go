package guestmem_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

func region(base guestmem.Addr, size int) guestmem.Region {
	return guestmem.Region{Base: base, Mem: make([]byte, size)}
}

func newMemory(t testing.TB, regions ...guestmem.Region) *guestmem.Memory {
	t.Helper()
	m, err := guestmem.New(regions...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNewRefuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		regions []guestmem.Region
		want    error
	}{
		{"none", nil, guestmem.ErrEmpty},
		{"empty", []guestmem.Region{region(0, 0)}, guestmem.ErrEmpty},
		{"unsorted", []guestmem.Region{region(0x2000, 16), region(0x1000, 16)}, guestmem.ErrUnsorted},
		{"the same", []guestmem.Region{region(0x1000, 16), region(0x1000, 16)}, guestmem.ErrOverlap},
		{"overlapping by a byte", []guestmem.Region{region(0x1000, 17), region(0x1010, 16)}, guestmem.ErrOverlap},
		{"past the end", []guestmem.Region{region(^guestmem.Addr(0)-14, 16)}, guestmem.ErrWraps},
	} {
		if _, err := guestmem.New(tc.regions...); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	newMemory(t, region(0x1000, 16), region(0x1010, 16), region(^guestmem.Addr(0)-15, 16))
}

// Whatever is read or written, and however memory is cut into regions: it behaves as one flat
// array with holes, all or nothing.
func TestMemoryIsAFlatArray(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const space = 512
		flat := make([]int, space) // -1: no RAM
		for i := range flat {
			flat[i] = -1
		}
		var regions []guestmem.Region
		for at := rapid.IntRange(0, 40).Draw(t, "start"); at < space; {
			n := min(rapid.IntRange(1, 80).Draw(t, "size"), space-at)
			regions = append(regions, region(guestmem.Addr(at), n))
			for i := range n {
				flat[at+i] = 0
			}
			at += n + rapid.SampledFrom([]int{0, 0, 1, 33}).Draw(t, "gap")
		}
		m, err := guestmem.New(regions...)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			at := rapid.IntRange(0, space).Draw(t, "at")
			n := rapid.IntRange(0, 100).Draw(t, "n")
			backed := true
			for i := at; i < at+n; i++ {
				backed = backed && i < space && flat[i] >= 0
			}
			data := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "data")
			if err := m.Write(data, guestmem.Addr(at)); (err == nil) != backed ||
				err != nil && !errors.Is(err, guestmem.ErrOutside) {
				t.Fatalf("Write of %d at %d: %v, backed %t", n, at, err, backed)
			}
			if backed {
				for i, b := range data {
					flat[at+i] = int(b)
				}
			}
			got := make([]byte, n)
			if err := m.Read(got, guestmem.Addr(at)); (err == nil) != backed {
				t.Fatalf("Read of %d at %d: %v, backed %t", n, at, err, backed)
			}
			w, err := m.Window(guestmem.Addr(at), uint64(n))
			if (err == nil) != backed {
				t.Fatalf("Window of %d at %d: %v, backed %t", n, at, err, backed)
			}
			if !backed {
				if !bytes.Equal(got, make([]byte, n)) {
					t.Fatalf("a refused read wrote %x", got)
				}
				continue
			}
			if !bytes.Equal(got, data) {
				t.Fatalf("read %x, wrote %x", got, data)
			}
			c := w.Cursor()
			for range 5 {
				off := rapid.IntRange(0, n+3).Draw(t, "off")
				part := make([]byte, rapid.IntRange(0, 20).Draw(t, "part"))
				err := c.Read(part, uint64(off))
				if inside := len(part) == 0 || off+len(part) <= n; (err == nil) != inside {
					t.Fatalf("Cursor.Read of %d at %d of %d: %v", len(part), off, n, err)
				} else if inside && !bytes.Equal(part, data[min(off, n):][:len(part)]) {
					t.Fatalf("Cursor.Read of %d at %d: %x of %x", len(part), off, part, data)
				}
				b, err := c.Read16(uint64(off))
				if inside := off+16 <= n; (err == nil) != inside {
					t.Fatalf("Cursor.Read16 at %d of %d: %v", off, n, err)
				} else if inside && !bytes.Equal(b[:], data[off:off+16]) {
					t.Fatalf("Cursor.Read16 at %d: %x of %x", off, b, data)
				}
			}
		}
	})
}

func TestAddressesDoNotWrap(t *testing.T) {
	m := newMemory(t, region(0, 64), region(^guestmem.Addr(0)-63, 64))
	buf := make([]byte, 65)
	for _, a := range []guestmem.Addr{0, ^guestmem.Addr(0) - 63, ^guestmem.Addr(0)} {
		if err := m.Read(buf, a); !errors.Is(err, guestmem.ErrOutside) {
			t.Errorf("65 bytes at %v: %v", a, err)
		}
	}
	if _, err := m.Window(^guestmem.Addr(0)-63, 1<<63); !errors.Is(err, guestmem.ErrOutside) {
		t.Error(err)
	}
	if err := m.Read(buf[:64], ^guestmem.Addr(0)-63); err != nil {
		t.Error(err)
	}
}

func TestFill(t *testing.T) {
	m := newMemory(t, region(0, 4), region(4, 4))
	if err := m.Fill(strings.NewReader("abcdef"), 1, 6); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if err := m.Read(got, 0); err != nil || string(got) != "\x00abcdef\x00" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := m.Fill(strings.NewReader("abcdef"), 3, 6); !errors.Is(err, guestmem.ErrOutside) {
		t.Errorf("outside: %v", err)
	}
	if err := m.Fill(strings.NewReader("abcd"), 0, 8); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short: %v", err)
	}
}

func TestWords(t *testing.T) {
	m := newMemory(t, region(0x1000, 64), region(0x1040, 64))
	w, err := m.Uint64(0x1008)
	if err != nil {
		t.Fatal(err)
	}
	w.Store(0x1122334455667788)
	var b [8]byte
	if err := m.Read(b[:], 0x1008); err != nil || b != [8]byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11} {
		t.Fatalf("%x, %v", b, err)
	}
	h, err := m.Uint32(0x100c)
	if err != nil || h.Load() != 0x11223344 {
		t.Fatalf("0x%x, %v", h.Load(), err)
	}
	for _, a := range []guestmem.Addr{0x1001, 0x1004, 0x1007} {
		if _, err := m.Uint64(a); !errors.Is(err, guestmem.ErrMisaligned) {
			t.Errorf("Uint64 at %v: %v", a, err)
		}
	}
	for _, a := range []guestmem.Addr{0, 0xff8, 0x1080, 0x107c} {
		if _, err := m.Uint64(a); !errors.Is(err, guestmem.ErrOutside) {
			t.Errorf("Uint64 at %v: %v", a, err)
		}
	}
	if _, err := m.Uint32(0x103e); !errors.Is(err, guestmem.ErrOutside) {
		t.Errorf("a word across two regions: %v", err)
	}
}

func TestSetByteLeavesTheOthers(t *testing.T) {
	m := newMemory(t, region(0, 8))
	w, err := m.Uint32(4)
	if err != nil {
		t.Fatal(err)
	}
	w.Store(0xaabbccdd)
	w.SetByte(1, 0x11)
	w.SetByte(3, 0)
	if got := w.Load(); got != 0x00bb11dd {
		t.Errorf("0x%08x", got)
	}
	if w.Byte(0) != 0xdd || w.Byte(1) != 0x11 || w.Byte(3) != 0 {
		t.Errorf("bytes %x %x %x", w.Byte(0), w.Byte(1), w.Byte(3))
	}
}

func TestSub(t *testing.T) {
	m := newMemory(t, region(0, 8), region(8, 8))
	w, err := m.Window(2, 12)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write([]byte("0123456789ab"), 0); err != nil {
		t.Fatal(err)
	}
	s, err := w.Sub(5, 4)
	if err != nil || s.Len() != 4 {
		t.Fatal(s, err)
	}
	got := make([]byte, 4)
	if err := s.Read(got, 0); err != nil || string(got) != "5678" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := w.Sub(9, 4); !errors.Is(err, guestmem.ErrOutside) {
		t.Error(err)
	}
}
