package shm

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Errors returned by a Writer, for errors.Is.
var (
	ErrFull     = errors.New("no room in the ring, message dropped") // counted in the header's drops
	ErrBusy     = errors.New("another goroutine is writing")         // not counted
	ErrCorrupt  = errors.New("ring header is corrupt")               // nothing was written or counted
	ErrTooLarge = errors.New("message is larger than the ring")      // not counted
)

// Writer is the guest's side of a ring. It may be used concurrently; each message is written whole and in one place. It
// must be the ring's only writer.
type Writer struct {
	mu       sync.Mutex
	data     *guestmem.Window
	capWord  guestmem.Uint32
	writePtr guestmem.Uint64
	readPtr  guestmem.Uint64
	drops    guestmem.Uint64
	bell     func()
}

// NewWriter returns a writer for the ring in region, for which Init has been called. It fails with ErrRegion,
// ErrCorrupt (no ring's magic) or guestmem.ErrMisaligned.
func NewWriter(region *guestmem.Window) (*Writer, error) {
	if err := checkRegion(region); err != nil {
		return nil, err
	}
	data, err := region.Sub(HeaderSize, region.Len()-HeaderSize)
	if err != nil {
		return nil, err
	}
	magic, err := region.Uint32(offMagic)
	if err != nil {
		return nil, fmt.Errorf("ring header: %w", err)
	}
	if got := magic.Load(); got != Magic {
		return nil, fmt.Errorf("%w: the magic is 0x%08x, a ring's is 0x%08x", ErrCorrupt, got, uint32(Magic))
	}
	w := &Writer{data: data, bell: func() {}}
	for _, f := range []struct {
		word *guestmem.Uint64
		off  uint64
	}{{&w.writePtr, offWritePtr}, {&w.readPtr, offReadPtr}, {&w.drops, offDrops}} {
		if *f.word, err = region.Uint64(f.off); err != nil {
			return nil, fmt.Errorf("ring header: %w", err)
		}
	}
	if w.capWord, err = region.Uint32(offCapacity); err != nil {
		return nil, fmt.Errorf("ring header: %w", err)
	}
	return w, nil
}

// SetBell sets the function that rings the host's doorbell. Without it, or if it does nothing,
// the host sees messages when it next polls. It is called after a message that ends a run, and
// by WriteWait for room, once a message. It must not block, and stores made before the call
// must be visible to whoever hears the bell. SetBell must be called before the first write.
func (w *Writer) SetBell(bell func()) { w.bell = bell }

// Capacity returns the size of the ring's data in bytes, as the region bounds it.
func (w *Writer) Capacity() uint64 { return w.data.Len() }

// Write puts one message into the ring, or counts it as dropped and returns ErrFull. It waits for other goroutines'
// writes, but never for the host.
func (w *Writer) Write(t Type, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(t, payload, w.state())
}

// TryWrite is Write for use in a panic, which may have happened inside
// Write: if another write is under way it returns ErrBusy at once.
func (w *Writer) TryWrite(t Type, payload []byte) error {
	if !w.mu.TryLock() {
		return ErrBusy
	}
	defer w.mu.Unlock()
	return w.write(t, payload, w.state())
}

// WriteWait is Write for messages that must not be dropped: if there is no room it waits for the host to make some,
// until ctx ends. If the ring can never hold the message, it returns ErrTooLarge.
func (w *Writer) WriteWait(ctx context.Context, t Type, payload []byte) error {
	size := MessageHeaderSize + uint64(len(payload))
	const firstPause, longestPause = 20 * time.Microsecond, 2 * time.Millisecond
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		w.mu.Lock()
		s := w.state()
		if size > s.capacity {
			w.mu.Unlock()
			return fmt.Errorf("%w: it takes %d bytes, the ring holds %d", ErrTooLarge, size, s.capacity)
		}
		if used := s.used(); used > s.capacity || size <= s.capacity-used {
			defer w.mu.Unlock()
			return w.write(t, payload, s)
		}
		w.mu.Unlock()
		if pause == firstPause {
			w.bell()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrFull, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// ringState is what the header says at one moment, in bytes.
type ringState struct{ capacity, writePtr, readPtr uint64 }

// used is how much the reader has not read, or more than the capacity if the header is corrupt.
func (s ringState) used() uint64 { return s.writePtr - s.readPtr }

// state loads each field once: as Device memory, the header is far away.
func (w *Writer) state() ringState {
	return ringState{uint64(w.capWord.Load()), w.writePtr.Load(), w.readPtr.Load()}
}

func (w *Writer) write(t Type, payload []byte, s ringState) error {
	if s.capacity == 0 || s.capacity > w.data.Len() {
		return fmt.Errorf("%w: the capacity is %d bytes, the region holds %d", ErrCorrupt, s.capacity, w.data.Len())
	}
	used := s.used()
	if used > s.capacity {
		return fmt.Errorf("%w: write_ptr 0x%x, read_ptr 0x%x, capacity %d bytes", ErrCorrupt, s.writePtr, s.readPtr,
			s.capacity)
	}
	size := MessageHeaderSize + uint64(len(payload))
	if uint64(len(payload)) > math.MaxUint32 || size > s.capacity-used {
		if n := w.drops.Load(); n != math.MaxUint64 {
			w.drops.Store(n + 1)
		}
		return fmt.Errorf("%w: it takes %d bytes, %d of %d are free", ErrFull, size, s.capacity-used, s.capacity)
	}
	h := messageHeader{typ: t, length: uint32(len(payload)), crc: crc32.ChecksumIEEE(payload)}
	raw := h.encode()
	if err := w.put(raw[:], s.writePtr, s.capacity); err != nil {
		return err
	}
	if err := w.put(payload, s.writePtr+MessageHeaderSize, s.capacity); err != nil {
		return err
	}
	w.writePtr.Store(s.writePtr + size)
	if t.endsRun() {
		w.bell()
	}
	return nil
}

// put copies src, at most capacity bytes, into the data at pos.
func (w *Writer) put(src []byte, pos, capacity uint64) error {
	index := pos % capacity
	first := min(uint64(len(src)), capacity-index)
	if err := w.data.Write(src[:first], index); err != nil {
		return err
	}
	return w.data.Write(src[first:], 0)
}
