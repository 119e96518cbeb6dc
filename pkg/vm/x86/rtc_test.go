package x86

import (
	"testing"
	"time"
)

// A driver finds a clock that runs, in BCD, and its time.
func TestRTC(t *testing.T) {
	at := time.Date(2026, 11, 24, 23, 59, 58, 0, time.UTC)
	for register, want := range map[byte]byte{
		0x00: 0x58, 0x02: 0x59, 0x04: 0x23, 0x06: 0x03, 0x07: 0x24, 0x08: 0x11, 0x09: 0x26, 0x32: 0x20,
		0x0a: 0x26, 0x0b: 0x02, 0x0c: 0, 0x0d: 0x80, 0x40: 0,
	} {
		if got := rtcRead(register, at); got != want {
			t.Errorf("register 0x%x: 0x%x, want 0x%x", register, got, want)
		}
	}
	b := NewBus(nil, nil, nil, nil)
	b.Out(0x70, []byte{0x8b}) // register B, NMIs masked
	data := []byte{0}
	if b.In(0x71, data); data[0] != 0x02 {
		t.Errorf("register B by the ports: 0x%x", data[0])
	}
}
