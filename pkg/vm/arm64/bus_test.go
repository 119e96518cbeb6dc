package arm64_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
)

// A driver may use accesses of 1, 2 or 4 bytes, and a guest any. That it finds a PL011 is pkg/vm's test.
func TestBusAccesses(t *testing.T) {
	var console bytes.Buffer
	b := arm64.NewBus(&console, func(uint32, uint32) error { return nil })
	for _, data := range [][]byte{{'a'}, {'b', 0}, {'c', 1, 2, 3}, {'d', 0, 0, 0, 0, 0, 0, 0}} {
		if !b.Write(arm64.UART, data) {
			t.Errorf("%d bytes: no device", len(data))
		}
	}
	if !b.Write(arm64.UART+1, []byte{'e'}) || console.String() != "abcd" {
		t.Errorf("console %q", console.String())
	}
	for _, tc := range []struct {
		at   guestmem.Addr
		want []byte
	}{
		{arm64.UART + 0xfe0, []byte{0x11}},
		{arm64.UART + 0x30, []byte{0x00, 0x03}},
		{arm64.UART + 0x31, []byte{0x03, 0x00}},
		{arm64.UART + 0x18, []byte{0x90, 0, 0, 0, 0, 0, 0, 0}},
		{arm64.UART + 0x100, []byte{0, 0, 0, 0}},
		{arm64.UART + 0xfff, []byte{0}},
	} {
		data := bytes.Repeat([]byte{0xaa}, len(tc.want))
		if !b.Read(tc.at, data) || !bytes.Equal(data, tc.want) {
			t.Errorf("%v: %x, want %x", tc.at, data, tc.want)
		}
	}
	for _, at := range []guestmem.Addr{0, arm64.UART - 1, arm64.UART + 0xffd, arm64.UART + 0x1000, ^guestmem.Addr(0)} {
		if b.Write(at, make([]byte, 4)) || b.Read(at, make([]byte, 4)) {
			t.Errorf("%v: a device", at)
		}
	}
	if b.Read(arm64.UART, nil) {
		t.Error("no bytes: a device")
	}
}

// The line changes where the interrupt does, and is not set again at each byte.
func TestBusInterrupt(t *testing.T) {
	var levels []uint32
	b := arm64.NewBus(&bytes.Buffer{}, func(interrupt, level uint32) error {
		if interrupt != 1 {
			t.Errorf("interrupt %d", interrupt)
		}
		levels = append(levels, level)
		return nil
	})
	write := func(register guestmem.Addr, v byte) { b.Write(arm64.UART+register, []byte{v, 0}) }
	write(0x00, 'x')  // masked
	write(0x38, 0x20) // 1
	write(0x00, 'x')
	write(0x44, 0x20) // 0
	write(0x00, 'x')  // 1
	write(0x38, 0x00) // 0
	if want := []uint32{1, 0, 1, 0}; !slices.Equal(levels, want) {
		t.Errorf("levels %v, want %v", levels, want)
	}
}
