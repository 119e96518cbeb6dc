package call

import (
	"fmt"
	"hash/crc32"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// slot is one slot of an area, as either side sees it.
type slot struct {
	state, kind, length, crc guestmem.Uint32
	data                     *guestmem.Window
}

// newSlot returns the slot at a place of an area.
func newSlot(area *guestmem.Window, s span) (x slot, err error) {
	at := uint64(s.offset)
	for _, f := range []struct {
		word *guestmem.Uint32
		off  uint64
	}{{&x.state, offState}, {&x.kind, offKind}, {&x.length, offLength}, {&x.crc, offCRC}} {
		if *f.word, err = area.Uint32(at + f.off); err != nil {
			return slot{}, fmt.Errorf("%w: %w", ErrArea, err)
		}
	}
	if x.data, err = area.Sub(at+SlotHeaderSize, uint64(s.size)-SlotHeaderSize); err != nil {
		return slot{}, fmt.Errorf("%w: %w", ErrArea, err)
	}
	return x, nil
}

// room is how much data the slot holds, in bytes.
func (s slot) room() int { return int(s.data.Len()) }

// put fills the slot, and then gives it a state. The data must fit.
func (s slot) put(to state, k Kind, data []byte) {
	_ = s.data.Write(data, 0)
	s.kind.Store(uint32(k))
	s.length.Store(uint32(len(data)))
	s.crc.Store(crc32.ChecksumIEEE(data))
	s.state.Store(to)
}

// take copies what the other side has put into the slot. Each value is fetched once; data is valid until buf, which is
// as large as the slot's room, is used again.
func (s slot) take(buf []byte) (k Kind, data []byte, err error) {
	k = Kind(s.kind.Load())
	n, sum := s.length.Load(), s.crc.Load()
	if uint64(n) > s.data.Len() {
		return k, nil, fmt.Errorf("%w: %v has %d bytes, the slot has room for %d", ErrFormat, k, n, s.data.Len())
	}
	data = buf[:n]
	if err := s.data.Read(data, 0); err != nil {
		return k, nil, err
	}
	if got := crc32.ChecksumIEEE(data); got != sum {
		return k, nil, fmt.Errorf("%w: %v of %d bytes has the CRC 0x%08x, and says 0x%08x", ErrFormat, k, n, got, sum)
	}
	return k, data, nil
}

// How long either side sleeps between two looks at the other's words: shortly while calls flow, and longer and longer
// when they do not.
const (
	spinLimit  = 200 * time.Microsecond // the guest's, before it sleeps
	firstPause = 20 * time.Microsecond
	// napLimit is up to where a pause is slept by the kernel: the runtime's shortest sleep is a millisecond, if nothing
	// else is going on (netpoll_epoll.go).
	napLimit = time.Millisecond
	idlePoll = 10 * time.Millisecond
	// workLimit is after how much work the host rests for restFactor times as long, so that a guest that calls without
	// end, or rings the doorbell without end, takes a part of one of the host's CPUs.
	workLimit  = 50 * time.Microsecond
	restFactor = 3
)

// nap sleeps for less than napLimit.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // a signal may cut it short
}
