package shm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

func newControl(t *testing.T) (*ring, shm.Control) {
	t.Helper()
	r := newRing(t, 256, shm.Limits{})
	c, err := shm.NewControl(r.region)
	if err != nil {
		t.Fatal(err)
	}
	return r, c
}

func TestControlBytes(t *testing.T) {
	r, c := newControl(t)
	c.RequestDump()
	c.RequestStall()
	for slot, v := range map[shm.Slot]byte{shm.SlotHost: shm.SignalShutdown, shm.SlotGuest: shm.SignalProbesReady} {
		if err := c.Signal(slot, v); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(r.mem[12:16]); got != "DS\xdd\x02" {
		t.Fatalf("control bytes %q", got)
	}
	if !c.TakeDump() || c.TakeDump() || !c.TakeStall() || c.TakeStall() {
		t.Error("a request is taken once")
	}
	if got := string(r.mem[12:16]); got != "\x00\x00\xdd\x02" {
		t.Errorf("control bytes %q", got)
	}
	r.mem[12] = 'x' // no request
	if c.TakeDump() || r.mem[12] != 'x' {
		t.Error("took what is no request")
	}
}

func TestSlots(t *testing.T) {
	_, c := newControl(t)
	for _, s := range []shm.Slot{2, 255} {
		if err := c.Signal(s, 1); !errors.Is(err, shm.ErrSlot) {
			t.Errorf("Signal(%d): %v", s, err)
		}
		if _, err := c.Read(s); !errors.Is(err, shm.ErrSlot) {
			t.Errorf("Read(%d): %v", s, err)
		}
		if _, err := c.WaitFor(t.Context(), s); !errors.Is(err, shm.ErrSlot) {
			t.Errorf("WaitFor(%d): %v", s, err)
		}
	}
}

func TestWaitFor(t *testing.T) {
	_, c := newControl(t)
	got := make(chan byte)
	go func() {
		v, _ := c.WaitFor(t.Context(), shm.SlotGuest)
		got <- v
	}()
	time.Sleep(5 * time.Millisecond)
	if err := c.Signal(shm.SlotGuest, shm.SignalProbesReady); err != nil {
		t.Fatal(err)
	}
	select {
	case v := <-got:
		if v != shm.SignalProbesReady {
			t.Errorf("got %d", v)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not woken")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := c.WaitFor(ctx, shm.SlotHost); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestControlOutsideTheRegion(t *testing.T) {
	if _, err := shm.NewControl(split(t, make([]byte, 14), 1)); !errors.Is(err, guestmem.ErrOutside) {
		t.Error(err)
	}
}
