package x86_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// demo is the embedded guest.
func demo(t testing.TB) []byte {
	t.Helper()
	image, err := guest.Demo("x86_64")
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestELFRefuses(t *testing.T) {
	le, good := binary.LittleEndian, demo(t)
	change := func(fn func(b []byte)) []byte {
		b := bytes.Clone(good)
		fn(b)
		return b
	}
	const phdr = 64 // the image's only program header
	for name, image := range map[string][]byte{
		"empty":                 {},
		"text":                  []byte("#!/bin/sh\n"),
		"header cut":            good[:40],
		"segment cut":           good[:len(good)/2],
		"32-bit":                change(func(b []byte) { b[4] = 1 }),
		"other architecture":    change(func(b []byte) { le.PutUint16(b[18:], 183) }),
		"shared object":         change(func(b []byte) { le.PutUint16(b[16:], 3) }),
		"below 1 MiB":           change(func(b []byte) { le.PutUint64(b[phdr+24:], 0x1000) }),
		"outside RAM":           change(func(b []byte) { le.PutUint64(b[phdr+24:], 0xffffffff00000000) }),
		"wraps":                 change(func(b []byte) { le.PutUint64(b[phdr+40:], ^uint64(0)) }),
		"file over memory":      change(func(b []byte) { le.PutUint64(b[phdr+40:], 1) }),
		"entry outside":         change(func(b []byte) { le.PutUint64(b[24:], 0x100) }),
		"over the ring":         change(func(b []byte) { le.PutUint64(b[phdr+24:], 496<<20) }),
		"many headers, no room": change(func(b []byte) { le.PutUint16(b[56:], 0xffff) }),
	} {
		ram, err := guestmem.New(guestmem.Region{Mem: make([]byte, 8<<20)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (x86.ELF{File: bytes.NewReader(image)}).Load(ram); !errors.Is(err, vm.ErrKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzELF: any file as a kernel is loaded or refused, as with FuzzBzImage.
func FuzzELF(f *testing.F) {
	f.Add(elfKernel(16, segment{64 + 2*56, 1 << 20, 16, 64}, segment{0, 1<<20 + 4096, 16, 16}))
	f.Add(demo(f)[:100])
	ram, err := guestmem.New(guestmem.Region{Base: 1 << 20, Mem: make([]byte, 64<<10)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		k, err := x86.ELF{File: bytes.NewReader(image)}.Load(ram)
		checkLoaded(t, k, err)
	})
}
