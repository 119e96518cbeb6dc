package shm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Slot is one of the header's two signal slots: a byte that one side
// sets and the other waits for. ktstr shm_ring.rs, SIGNAL_SLOT_BASE.
type Slot uint8

// The slots and the values that the format gives a meaning.
const (
	SlotHost  Slot = 0 // the host signals the guest
	SlotGuest Slot = 1 // the guest signals the host

	SignalShutdown    byte = 0xdd // in SlotHost: flush, report and stop
	SignalProbesReady byte = 2    // in SlotGuest: the scenario is about to start
	SignalGo          byte = 1    // in either: a plain signal

	DumpRequest  byte = 'D' // in the dump byte: trigger SysRq-D
	StallRequest byte = 'S' // in the stall byte: stall the scheduler

	byteDump  = 0 // places in the control word
	byteStall = 1
	byteSlots = 2
	slotCount = 2
)

// ErrSlot means that the header does not have a signal slot.
var ErrSlot = errors.New("no such signal slot")

// Control gives access to the header's control bytes, from either side. It may be used concurrently.
type Control struct{ word guestmem.Uint32 }

// NewControl returns the control bytes of the ring in region. It fails with guestmem.ErrOutside or
// guestmem.ErrMisaligned.
func NewControl(region *guestmem.Window) (Control, error) {
	word, err := region.Uint32(offControl)
	if err != nil {
		return Control{}, fmt.Errorf("ring control bytes: %w", err)
	}
	return Control{word}, nil
}

// RequestDump asks the guest for a SysRq-D dump.
func (c Control) RequestDump() { c.word.SetByte(byteDump, DumpRequest) }

// RequestStall asks the guest to stall its scheduler.
func (c Control) RequestStall() { c.word.SetByte(byteStall, StallRequest) }

// TakeDump reports whether a dump was requested, and clears the request. The guest calls it.
func (c Control) TakeDump() bool { return c.take(byteDump, DumpRequest) }

// TakeStall reports whether a stall was requested, and clears the request. The guest calls it.
func (c Control) TakeStall() bool { return c.take(byteStall, StallRequest) }

func (c Control) take(i uint, want byte) bool {
	if c.word.Byte(i) != want {
		return false
	}
	c.word.SetByte(i, 0)
	return true
}

// Signal sets a slot; 0 clears it. It fails with ErrSlot.
func (c Control) Signal(s Slot, v byte) error {
	if s >= slotCount {
		return fmt.Errorf("%w: %d, the header has %d", ErrSlot, s, slotCount)
	}
	c.word.SetByte(byteSlots+uint(s), v)
	return nil
}

// Read returns a slot's value. It fails with ErrSlot.
func (c Control) Read(s Slot) (byte, error) {
	if s >= slotCount {
		return 0, fmt.Errorf("%w: %d, the header has %d", ErrSlot, s, slotCount)
	}
	return c.word.Byte(byteSlots + uint(s)), nil
}

// WaitFor waits until a slot is not 0 and returns its value. It fails
// with ctx's error or ErrSlot. The memory can't wake a waiter, so
// WaitFor polls it, after 100 µs at first and after 10 ms in the end.
func (c Control) WaitFor(ctx context.Context, s Slot) (byte, error) {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		v, err := c.Read(s)
		if err != nil || v != 0 {
			return v, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("signal slot %d is still 0: %w", s, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}
