package e820_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/pkg/e820"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

func TestLayouts(t *testing.T) {
	for _, tc := range []struct {
		name         string
		memory, ring uint64
		wantRing     uint64 // start
		wantRAM      []e820.Range
	}{
		{"512 MiB", 512 * mib, 16 * mib, 496 * mib, []e820.Range{{Start: mib, Size: 495 * mib}}},
		{"up to the MMIO hole", 3 * gib, 16 * mib, 3*gib - 16*mib, []e820.Range{{Start: mib, Size: 3*gib - 17*mib}}},
		{"5 GiB", 5 * gib, 16 * mib, 6*gib - 16*mib,
			[]e820.Range{{Start: mib, Size: 3*gib - mib}, {Start: 4 * gib, Size: 2*gib - 16*mib}}},
		{"a page over the hole", 3*gib + 4*kib, 16 * mib, 4 * gib, []e820.Range{{Start: mib, Size: 3*gib - 17*mib + 4*kib}}},
		{"ring just fits above 4 GiB", 3*gib + 16*mib, 16 * mib, 4 * gib, []e820.Range{{Start: mib, Size: 3*gib - mib}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := e820.New(tc.memory, tc.ring)
			if err != nil {
				t.Fatal(err)
			}
			if l.Ring != (e820.Range{Start: tc.wantRing, Size: tc.ring}) {
				t.Errorf("ring at %#x, %d bytes; want %#x", l.Ring.Start, l.Ring.Size, tc.wantRing)
			}
			var got []e820.Range
			for _, e := range l.Map {
				if e.Type == e820.RAM && e.Start >= mib {
					got = append(got, e.Range)
				}
			}
			if diff := cmp.Diff(tc.wantRAM, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	for _, tc := range []struct {
		memory, ring uint64
		want         error
	}{
		{512 * mib, 0, e820.ErrRingSize},
		{512 * mib, 4 * kib, e820.ErrRingSize},
		{4 * gib, gib + e820.MaxBeside + 4*kib, e820.ErrRingSize},
		{512 * mib, 16*mib + 1, e820.ErrAlign},
		{512*mib + 512, 16 * mib, e820.ErrAlign},
		{0, 16 * mib, e820.ErrMemory},
		{8 * mib, 16 * mib, e820.ErrMemory},
		{16 * mib, 16 * mib, e820.ErrMemory},
		{1<<40 + 4*kib, 16 * mib, e820.ErrMemory},
		{1<<64 - 4*kib, 16 * mib, e820.ErrMemory},
	} {
		if _, err := e820.New(tc.memory, tc.ring); !errors.Is(err, tc.want) {
			t.Errorf("New(%d, %d): %v, want %v", tc.memory, tc.ring, err, tc.want)
		}
	}
}

// Whatever the sizes: all of memory is somewhere, nothing overlaps, and no entry of the map
// touches the ring or a hole.
func TestMapProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ring := rapid.Uint64Range(2, gib/(4*kib)).Draw(t, "ring pages") * 4 * kib
		memory := ring + 2*mib + rapid.Uint64Range(0, 2*mib).Draw(t, "ram pages")*4*kib
		l, err := e820.New(memory, ring)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Low.Size + l.High.Size + l.Ring.Size; got != memory {
			t.Fatalf("the layout has %d bytes of %d", got, memory)
		}
		holes := []e820.Range{l.Ring, {Start: 0xa0000, Size: 0x60000}, {Start: 3 * gib, Size: gib}}
		end := uint64(0)
		for _, e := range l.Map {
			if e.Start < end {
				t.Fatalf("entry at %#x begins before %#x", e.Start, end)
			}
			end = e.End()
			for _, h := range holes {
				if e.Start < h.End() && h.Start < e.End() {
					t.Fatalf("entry %#x-%#x covers %#x-%#x", e.Start, e.End(), h.Start, h.End())
				}
			}
			backed := false
			for _, r := range []e820.Range{l.Low, l.High} {
				backed = backed || e.Start >= r.Start && e.End() <= r.End()
			}
			if !backed {
				t.Fatalf("entry %#x-%#x is not backed", e.Start, e.End())
			}
		}
		if l.Ring.Start < 3*gib && l.Ring.End() > 3*gib {
			t.Fatalf("the ring %#x-%#x crosses into the MMIO hole", l.Ring.Start, l.Ring.End())
		}
	})
}

func TestEncode(t *testing.T) {
	page := make([]byte, e820.BootParamsSize)
	entries := []e820.Entry{{Range: e820.Range{Start: 0x1122334455667788, Size: 0x99aa}, Type: e820.RAM},
		{Range: e820.Range{Start: 1, Size: 2}, Type: e820.Reserved}}
	if err := e820.Encode(entries, page); err != nil {
		t.Fatal(err)
	}
	if page[0x1e8] != 2 {
		t.Errorf("count is %d, want 2", page[0x1e8])
	}
	want := []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xaa, 0x99, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	if diff := cmp.Diff(want, page[0x2d0:0x2d0+20]); diff != "" {
		t.Error(diff)
	}
	if got := binary.LittleEndian.Uint32(page[0x2d0+20+16:]); got != 2 {
		t.Errorf("second entry has type %d, want 2", got)
	}
	if err := e820.Encode(make([]e820.Entry, 129), page); !errors.Is(err, e820.ErrBootParams) {
		t.Errorf("129 entries: %v", err)
	}
	if err := e820.Encode(entries, page[:4095]); !errors.Is(err, e820.ErrBootParams) {
		t.Errorf("short page: %v", err)
	}
}
