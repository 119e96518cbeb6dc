package shm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// The bell rings behind each message that ends a run, when the message can be read, and for no other.
func TestWriterRingsForTheEnd(t *testing.T) {
	r := newRing(t, 4096, shm.Limits{})
	var heard []entry
	r.writer.SetBell(func() { r.reader.Drain(keep(&heard)) })
	ends := map[shm.Type]bool{shm.Exit: true, shm.SchedulerExit: true, shm.Crash: true}
	for _, typ := range append(shm.Types(), 0x42) {
		heard = nil
		if err := r.writer.Write(typ, []byte("payload")); err != nil {
			t.Fatal(err)
		}
		if rang := len(heard) > 0; rang != ends[typ] {
			t.Errorf("%v: rung for: %t", typ, rang)
		}
		if ends[typ] && heard[len(heard)-1].Type != typ {
			t.Errorf("%v was not there yet: %v", typ, heard)
		}
	}
	heard = nil
	if err := r.writer.TryWrite(shm.Crash, nil); err != nil || len(heard) == 0 {
		t.Errorf("TryWrite: %v, heard %v", err, heard)
	}
}

// Who waits for room rings for it, once; who does not wait does not ring.
func TestWriterRingsForRoom(t *testing.T) {
	r := newRing(t, 100, shm.Limits{})
	rings, deaf := 0, true
	var heard []entry
	r.writer.SetBell(func() {
		if rings++; !deaf {
			r.reader.Drain(keep(&heard))
		}
	})
	text := []byte("20 bytes of payload.")
	r.write(shm.Stdout, string(text))
	if err := r.writer.Write(shm.Stdout, text); !errors.Is(err, shm.ErrFull) || rings != 0 {
		t.Errorf("%v, %d rings, want none", err, rings)
	}
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.writer.WriteWait(soon, shm.Stdout, text); !errors.Is(err, shm.ErrFull) || rings != 1 {
		t.Errorf("nobody heard: %v, %d rings, want 1", err, rings)
	}
	deaf = false
	if err := r.writer.WriteWait(t.Context(), shm.Stdout, text); err != nil || rings != 2 || len(heard) != 1 {
		t.Errorf("%v, %d rings, want 2, and %v", err, rings, heard)
	}
}
