package kerneltest

import "testing"

// pageTables writes page tables that map the kernel's image and, from the start of RAM on, all of its memory: by blocks
// where the architecture has them at the lowest level but one, else by pages.
func (k Kernel) pageTables(t testing.TB, m memory) {
	t.Helper()
	a, text := k.arch(), k.text()
	w := &tableWriter{t: t, m: m, Paging: k.Paging, x86: k.Arch == "x86_64", root: text + RootAt, next: text + offTables}
	for off := uint64(0); off < Size-k.Moved; off += w.block() {
		w.mapBlock(a.image+k.Slid+off, text+off)
	}
	for off := uint64(0); off < Size; off += w.block() {
		w.mapBlock(a.virtual(a.base+off), a.base+off)
	}
}

type tableWriter struct {
	Paging
	t          testing.TB
	m          memory
	x86        bool
	root, next uint64
}

const tableRoom = 1 << 16

// blockLevel is the level, counted from 0 for pages, at which memory is mapped: by 2 MiB, or by pages of 64 KiB.
func (w *tableWriter) blockLevel() int {
	if w.Page == 12 {
		return 1
	}
	return 0
}

func (w *tableWriter) block() uint64 { return 1 << (w.Page + uint(w.blockLevel())*(w.Page-3)) }

// mapBlock maps a block of addresses to memory.
func (w *tableWriter) mapBlock(va, pa uint64) {
	table := w.root
	for level := w.Levels - 1; ; level-- {
		shift := w.Page + uint(level)*(w.Page-3)
		entries := uint64(1) << (w.Page - 3)
		if level == w.Levels-1 {
			entries = 1 << (w.Bits - shift)
		}
		entry := table + va>>shift%entries*8
		if level == w.blockLevel() {
			w.m.uint64(entry, pa|w.leaf(level))
			return
		}
		if le.Uint64(w.m.at(entry)) == 0 {
			if w.next-w.root > offRQ-RootAt-tableRoom {
				w.t.Fatal("too many page tables")
			}
			w.m.uint64(entry, w.next|3) // present, or valid and a table
			w.next += tableRoom
		}
		table = le.Uint64(w.m.at(entry)) &^ 0xfff
	}
}

// leaf returns an entry's bits other than its address; those at the top are there to be ignored.
func (w *tableWriter) leaf(level int) uint64 {
	switch {
	case w.x86 && level > 0:
		return 1<<63 | 1<<7 | 3
	case w.x86:
		return 1<<63 | 3
	case level > 0:
		return 0x0078_0000_0000_0701
	}
	return 0x0078_0000_0000_0703
}
