package x86

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Offsets in kernelELF: of e_* fields, and of its first program header (data) and last one (text).
const (
	eType, eMachine, eEntry, ePhoff, ePhnum = 16, 18, 24, 32, 56
	dataHeader, textHeader                  = 64, 64 + 3*56
	pOffset, pPaddr, pFilesz, pMemsz        = 8, 24, 32, 40
)

func changedELF(fn func(b []byte)) []byte {
	b := kernelELF(smallText)
	fn(b)
	return b
}

// A stream may come in any pieces, and headers may be part of what is loaded.
func TestELFStream(t *testing.T) {
	withHeaders := changedELF(func(b []byte) {
		le.PutUint64(b[textHeader+pOffset:], 0)
		le.PutUint64(b[textHeader+pFilesz:], textOff+smallText)
		le.PutUint64(b[textHeader+pMemsz:], textOff+smallText)
		le.PutUint64(b[textHeader+pPaddr:], textAddr-textOff)
	})
	want := wantRAM(smallText)
	for name, tc := range map[string]struct {
		stream io.Reader
		head   int // bytes of headers that are loaded
	}{
		"whole":          {bytes.NewReader(kernelELF(smallText)), 0},
		"byte by byte":   {iotest.OneByteReader(bytes.NewReader(kernelELF(smallText))), 0},
		"end with data":  {iotest.DataErrReader(bytes.NewReader(kernelELF(smallText))), 0},
		"no end to read": {bytes.NewReader(kernelELF(smallText)[:dataOff(smallText)+dataSize]), 0},
		"with headers":   {bytes.NewReader(withHeaders), textOff},
	} {
		ram, mem := newRAM(t, smallText)
		want := bytes.Clone(want)
		copy(want[textAddr-tc.head:textAddr], withHeaders)
		entry, end, err := loadELFStream(tc.stream, ram)
		if err != nil || entry != textAddr+0x10 || end != guestmem.Addr(ramEnd(smallText)) || !bytes.Equal(mem, want) {
			t.Errorf("%s: entry %v, end %v, the same memory: %t, %v", name, entry, end, bytes.Equal(mem, want), err)
		}
	}
}

func TestELFStreamRefuses(t *testing.T) {
	good := kernelELF(smallText)
	put := func(at int, v uint64) []byte {
		return changedELF(func(b []byte) { le.PutUint64(b[at:], v) })
	}
	put16 := func(at int, v uint16) []byte {
		return changedELF(func(b []byte) { le.PutUint16(b[at:], v) })
	}
	for name, file := range map[string][]byte{
		"empty":              {},
		"text":               []byte("#!/bin/sh\n"),
		"header cut":         good[:40],
		"program header cut": good[:textHeader],
		"text cut":           good[:textOff+smallText/2],
		"gap cut":            good[:textOff+smallText+1],
		"data cut":           good[:dataOff(smallText)+dataSize-1],
		"32-bit":             changedELF(func(b []byte) { b[4] = 1 }),
		"big-endian":         changedELF(func(b []byte) { b[5] = 2 }),
		"other architecture": put16(eMachine, 183),
		"shared object":      put16(eType, 3),
		"below 1 MiB":        put(textHeader+pPaddr, 0x1000),
		"outside RAM":        put(textHeader+pPaddr, 0xffffffff00000000),
		"over RAM's end":     put(dataHeader+pPaddr, uint64(ramEnd(smallText)-dataMem+1)),
		"wraps":              put(textHeader+pMemsz, ^uint64(0)),
		"file over memory":   put(textHeader+pMemsz, smallText-1),
		"entry outside":      put(eEntry, 0x100),
		"many headers":       put16(ePhnum, 0xffff),
		"no headers":         put16(ePhnum, 0),
		"headers far away":   put(ePhoff, 1<<40),
		"headers at the end": put(ePhoff, ^uint64(0)),
		"segment far away":   put(dataHeader+pOffset, 1<<40),
		"segment at the end": put(dataHeader+pOffset, ^uint64(0)),
		"segments overlap":   put(dataHeader+pOffset, textOff+smallText-1),
		"the same twice":     put(dataHeader+pOffset, textOff),
	} {
		ram, _ := newRAM(t, smallText)
		if _, _, err := loadELFStream(bytes.NewReader(file), ram); !errors.Is(err, vm.ErrKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, 100, textOff + 1, dataOff(smallText) + 1, len(good)} {
		stream := io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(iotest.ErrTimeout))
		ram, _ := newRAM(t, smallText)
		if _, _, err := loadELFStream(stream, ram); !errors.Is(err, vm.ErrKernel) || !errors.Is(err, iotest.ErrTimeout) {
			t.Errorf("an error after %d bytes: %v", n, err)
		}
	}
}

// FuzzELFStream: any stream is loaded or refused.
func FuzzELFStream(f *testing.F) {
	f.Add(kernelELF(smallText))
	f.Add(kernelELF(smallText)[:100])
	ram, _ := newRAM(f, smallText) // used again: to clear it takes longer than to load a kernel
	f.Fuzz(func(t *testing.T, file []byte) {
		if _, _, err := loadELFStream(bytes.NewReader(file), ram); err != nil && !errors.Is(err, vm.ErrKernel) {
			t.Fatal(err)
		}
	})
}
