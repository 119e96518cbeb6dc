package fdt_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
)

// imageOf is an image of memory with trees at their addresses.
func imageOf(size int, trees map[int][]byte) []byte {
	image := make([]byte, size)
	for at, tree := range trees {
		copy(image[at:], tree)
	}
	return image
}

// without is a tree whose ring has another name.
func without(tree []byte) []byte { return bytes.ReplaceAll(tree, []byte("shm@"), []byte("dma@")) }

func TestFind(t *testing.T) {
	qemu, other := encode(t, machines()["qemu"]), encode(t, machines()["other"])
	decoded := func(tree []byte) fdt.Memory {
		m, err := fdt.Decode(tree)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	broken := bytes.Clone(qemu[:40])
	for name, tc := range map[string]struct {
		image []byte
		want  fdt.Memory
		err   error
	}{
		"a tree":                      {qemu, decoded(qemu), nil},
		"its first page":              {imageOf(1<<20, map[int][]byte{0: qemu}), decoded(qemu), nil},
		"its last page":               {imageOf(3<<20, map[int][]byte{3<<20 - fdt.PageSize: qemu}), decoded(qemu), nil},
		"a part of a page at its end": {append(make([]byte, fdt.PageSize), qemu...), decoded(qemu), nil},
		"the first of two": {
			imageOf(3<<20, map[int][]byte{fdt.PageSize: other, 1 << 20: qemu}), decoded(other), nil,
		},
		"others before it": {
			imageOf(3<<20, map[int][]byte{0: without(other), fdt.PageSize: broken, 2 << 20: qemu}), decoded(qemu), nil,
		},
		"nothing":        {nil, fdt.Memory{}, fdt.ErrNoTree},
		"zeros":          {make([]byte, 3<<20), fdt.Memory{}, fdt.ErrNoTree},
		"not in a page":  {imageOf(1<<20, map[int][]byte{2048: qemu}), fdt.Memory{}, fdt.ErrNoTree},
		"three bytes":    {append(make([]byte, fdt.PageSize), qemu[:3]...), fdt.Memory{}, fdt.ErrNoTree},
		"without a ring": {imageOf(1<<20, map[int][]byte{0: without(other)}), decoded(without(other)), fdt.ErrNoRing},
		"broken":         {imageOf(1<<20, map[int][]byte{8192: broken}), fdt.Memory{}, fdt.ErrFormat},
	} {
		got, err := fdt.Find(bytes.NewReader(tc.image), int64(len(tc.image)))
		if diff := cmp.Diff(tc.want, got); diff != "" || !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v; %s", name, err, tc.err, diff)
		}
	}
}

// A guest that fills its memory with trees that are none keeps nobody busy: each of these takes a look at 2 MiB.
func TestFindGivesUp(t *testing.T) {
	page := make([]byte, fdt.PageSize)
	copy(page, blocks{structure: structure("{"), names: []byte(names)}.encode())
	be.PutUint32(page[4:], fdt.MaxSize)
	be.PutUint32(page[36:], fdt.PageSize) // the structure block has no end in the page
	qemu := encode(t, machines()["qemu"])
	image := append(bytes.Repeat(page, 99), imageOf(fdt.MaxSize, map[int][]byte{0: qemu})...)
	if _, err := fdt.Find(bytes.NewReader(image), int64(len(image))); err != nil {
		t.Errorf("the hundredth: %v", err)
	}
	image = slices.Concat(page, image)
	if _, err := fdt.Find(bytes.NewReader(image), int64(len(image))); !errors.Is(err, fdt.ErrFormat) {
		t.Errorf("the one behind it: %v, want ErrFormat", err)
	}
}

func TestFindReportsWhatCannotBeRead(t *testing.T) {
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fdt.Find(f, 1<<20); err == nil || errors.Is(err, fdt.ErrNoTree) {
		t.Errorf("of a folder: %v", err)
	}
}

func TestOffset(t *testing.T) {
	m := fdt.Memory{RAM: []fdt.Range{{Start: 0x40000000, Size: 0x1000}, {Start: 0x80000000, Size: 0x3000}}}
	for _, tc := range []struct {
		r    fdt.Range
		want uint64
		ok   bool
	}{
		{fdt.Range{Start: 0x40000000, Size: 0x1000}, 0, true},
		{fdt.Range{Start: 0x40000800, Size: 0x800}, 0x800, true},
		{fdt.Range{Start: 0x80002000, Size: 0x1000}, 0x3000, true},
		{fdt.Range{Start: 0x80002000, Size: 0x1001}, 0, false},
		{fdt.Range{Start: 0x40000800, Size: 0x40000000}, 0, false},
		{fdt.Range{Start: 0x3fffffff, Size: 2}, 0, false},
	} {
		if got, ok := m.Offset(tc.r); got != tc.want || ok != tc.ok {
			t.Errorf("%v: 0x%x, %t; want 0x%x, %t", tc.r, got, ok, tc.want, tc.ok)
		}
	}
}
