package fdt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// ErrNoTree means that an image of memory has no device tree.
var ErrNoTree = errors.New("no device tree")

// maxTrees bounds what Find does for a guest that fills its memory with what looks like trees.
const maxTrees = 100

// Find returns what a tree says that is somewhere in an image of memory, at a multiple of PageSize: the first one
// that says where the ring is, for who runs a machine may leave other trees there, as QEMU does. Where no tree says
// so, it returns what the first one says, with that one's error: ErrNoRing or ErrFormat; where there is none at all,
// ErrNoTree. It tries at most a hundred.
func Find(image io.ReaderAt, size int64) (Memory, error) {
	pages := bufio.NewReaderSize(io.NewSectionReader(image, 0, size), 1<<20)
	var first Memory
	firstErr := ErrNoTree
	trees := 0
	for at := int64(0); trees < maxTrees; at += PageSize {
		word, err := pages.Peek(4)
		if err == nil && be.Uint32(word) == magic {
			m, err := withRing(io.NewSectionReader(image, at, size-at))
			if err == nil {
				return m, nil
			}
			if trees++; trees == 1 {
				first, firstErr = m, err
			}
		}
		if err == nil {
			_, err = pages.Discard(PageSize)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Memory{}, fmt.Errorf("looking for a device tree at 0x%x: %w", at, err)
		}
	}
	return first, firstErr
}

// withRing reads a tree, which has to say where the ring is.
func withRing(r io.Reader) (Memory, error) {
	m, err := Read(r)
	if err == nil {
		_, err = m.Ring()
	}
	return m, err
}

// Offset returns where in an image of the machine's RAM a range begins. The image has the ranges of RAM one behind the
// other, as m has them. It is false for a range that is not within one of them.
func (m Memory) Offset(r Range) (offset uint64, ok bool) {
	for _, ram := range m.RAM {
		if ram.Start <= r.Start && r.End() <= ram.End() {
			return offset + r.Start - ram.Start, true
		}
		offset += ram.Size
	}
	return 0, false
}
