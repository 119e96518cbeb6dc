package x86_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// An access of 2 or 4 bytes is one to each of as many ports, and none goes round the last port to the first.
func TestWideAccessesAreSplit(t *testing.T) {
	var console bytes.Buffer
	var stopped []error
	b := x86.NewBus(&console, nil, func(uint32, uint32) error {
		return nil
	}, func(err error) {
		stopped = append(stopped, err)
	})
	b.Out(0x3fc, []byte{0x0b, 0, 0, 0x5a})
	data := []byte{1, 2, 3, 4}
	if b.In(0x3fc, data); !bytes.Equal(data, []byte{0x0b, 0x60, 0xb0, 0x5a}) {
		t.Errorf("COM1's last four: % x", data)
	}
	b.Out(0x3f7, []byte{'a', 'b'})
	if console.String() != "b" {
		t.Errorf("console %q", console.String())
	}
	b.Out(0x6f, []byte{0, 0x0d}) // the clock's register D
	if b.In(0x70, data[:2]); !bytes.Equal(data[:2], []byte{0xff, 0x80}) {
		t.Errorf("the clock's ports: % x", data[:2])
	}
	if b.In(0xffff, data); !bytes.Equal(data, []byte{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("around the end: % x", data)
	}
	if b.Out(0x61, []byte{0xfe, 0xfe, 0xfe, 0xfe}); len(stopped) != 1 || !errors.Is(stopped[0], vm.ErrReset) {
		t.Errorf("reset by the last byte of four: %v", stopped)
	}
	for _, v := range []byte{0, x86.PowerOff &^ (1 << 5), x86.PowerOff ^ 1<<2, 0xff} { // without SLP_EN, other sleep types
		if b.Out(x86.SleepControl, []byte{v}); len(stopped) != 1 {
			t.Fatalf("0x%x to the sleep control register: %v", v, stopped)
		}
	}
	if b.Out(0x5ff, []byte{0, x86.PowerOff | 0xc3}); len(stopped) != 2 || !errors.Is(stopped[1], vm.ErrPowerOff) {
		t.Errorf("power-off by the second byte of two: %v", stopped)
	}
}

// Each byte to the doorbell's port rings once, whatever it is, and the port answers as QEMU's does.
func TestDoorbell(t *testing.T) {
	rings := 0
	b := x86.NewBus(nil, func(n int) { rings += n }, nil, nil)
	b.Out(x86.Doorbell, []byte{0})
	b.Out(x86.Doorbell-1, []byte{0xff, 0xff})
	b.Out(x86.Doorbell+1, []byte{1})
	data := []byte{0}
	if b.In(x86.Doorbell, data); rings != 2 || data[0] != 0xe9 {
		t.Errorf("%d rings, want 2; read 0x%x", rings, data[0])
	}
}
