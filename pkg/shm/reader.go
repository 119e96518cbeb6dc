package shm

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// ErrRegion means that a region can't hold a ring.
var ErrRegion = errors.New("region can't hold a ring")

// Limits bound one call of Reader.Drain.
type Limits struct {
	Messages int    // 0: 65536
	Bytes    uint64 // of the ring; 0: 16 MiB. A message that begins below the limit is read whole.
}

// Stats counts what a Reader has seen since it was made.
type Stats struct {
	Messages  uint64                // read, including CRC-bad ones
	Bytes     uint64                // of the ring, message headers included
	CRCErrors uint64                // messages whose payload's CRC was wrong
	Lost      uint64                // bytes of the ring given up by faults
	Drops     uint64                // the largest count that the guest has shown
	Faults    [numFaultKinds]uint64 // by FaultKind
}

// DrainResult says what a call of Reader.Drain did.
type DrainResult struct {
	Messages int
	Bytes    uint64
	Unread   uint64   // bytes that were waiting when the call began
	More     bool     // it stopped at a limit
	Held     bool     // it stopped at a message that was not taken
	Fault    Fault    // Kind is NoFault if nothing broke
	Restored [4]Fault // header fields that the guest had changed and the host wrote back
}

// Reader reads a live ring on the host. Region, capacity and read position are its own;
// the header's copies are written for the guest to see and never believed. It holds a buffer for
// the largest message so far, which is at most the capacity. One goroutine at a time may use it.
type Reader struct {
	id       guestmem.Uint64 // magic and version
	capWord  guestmem.Uint32
	writePtr guestmem.Uint64
	readPtr  guestmem.Uint64
	drops    guestmem.Uint64

	data     guestmem.Cursor
	capacity uint64 // bytes of data; at least MessageHeaderSize
	batch    uint64 // bytes after which read_ptr is published within a drain
	limits   Limits

	pos   uint64 // bytes read since the start of the run
	index uint64 // pos % capacity
	buf   []byte // a payload's copy
	stats Stats
}

// Init writes the header of a fresh ring into the region, which is the whole window. It fails with ErrRegion if the
// region can't hold a message or is over MaxCapacity.
func Init(region *guestmem.Window) error {
	if err := checkRegion(region); err != nil {
		return err
	}
	b := NewHeader(region.Len()).Encode()
	return region.Write(b[:], 0)
}

func checkRegion(region *guestmem.Window) error {
	const least, most = HeaderSize + MessageHeaderSize, HeaderSize + MaxCapacity
	if n := region.Len(); n < least || n > most {
		return fmt.Errorf("%w: it is %d bytes, a ring takes %d to %d", ErrRegion, n, least, most)
	}
	return nil
}

// NewReader returns a reader of a fresh ring, whose header Init has
// just written. It fails with ErrRegion, or with guestmem.ErrMisaligned
// if the region does not start at a multiple of 8 bytes.
func NewReader(region *guestmem.Window, limits Limits) (*Reader, error) {
	return NewReaderAt(region, 0, limits)
}

// NewReaderAt is NewReader for a ring that has been read up to a position, which the caller remembers: the header's
// read_ptr can't be trusted.
func NewReaderAt(region *guestmem.Window, pos uint64, limits Limits) (*Reader, error) {
	if err := checkRegion(region); err != nil {
		return nil, err
	}
	if limits.Messages <= 0 {
		limits.Messages = 1 << 16
	}
	if limits.Bytes == 0 {
		limits.Bytes = 16 << 20
	}
	data, err := region.Sub(HeaderSize, region.Len()-HeaderSize)
	if err != nil {
		return nil, err
	}
	capacity := data.Len()
	r := &Reader{
		data:     data.Cursor(),
		capacity: capacity,
		// Often enough that a guest which waits for room goes on while we read, rarely
		// enough that the header's cache line is not passed to and fro for each message.
		batch:  min(capacity/4, 256<<10),
		limits: limits,
		pos:    pos,
		index:  pos % capacity,
	}
	word64 := func(off uint64) (w guestmem.Uint64) {
		if err == nil {
			w, err = region.Uint64(off)
		}
		return w
	}
	r.id, r.writePtr, r.readPtr, r.drops = word64(offMagic), word64(offWritePtr), word64(offReadPtr), word64(offDrops)
	if err == nil {
		r.capWord, err = region.Uint32(offCapacity)
	}
	if err != nil {
		return nil, fmt.Errorf("ring header: %w", err)
	}
	return r, nil
}

// Capacity returns the size of the ring's data in bytes.
func (r *Reader) Capacity() uint64 { return r.capacity }

// Stats returns what the reader has counted so far.
func (r *Reader) Stats() Stats { return r.stats }

// Drain reads the messages that are in the ring when the call begins, up to the
// limits, and passes each to fn, which reports whether it takes the message. A message
// that is not taken stays in the ring, with those after it, and the next call begins
// with it. A message's payload is the reader's buffer: fn must copy what it keeps.
//
// A ring that breaks the protocol can't stop the reader: it counts the fault and the bytes that it gives up, continues
// at write_ptr, and reads what is written from there.
func (r *Reader) Drain(fn func(Message) bool) DrainResult {
	var d DrainResult
	r.restoreHeader(&d)
	writePtr := r.writePtr.Load()
	r.stats.Drops = max(r.stats.Drops, r.drops.Load())

	d.Unread, d.Fault = checkDistance(r.pos, writePtr, r.capacity)
	if d.Fault.Kind != NoFault {
		r.skipTo(writePtr, d.Fault)
		return d
	}
	published := r.pos
	for unread := d.Unread; unread > 0; {
		if d.Messages >= r.limits.Messages || d.Bytes >= r.limits.Bytes {
			d.More = true
			break
		}
		n, taken := r.next(unread, fn, &d.Fault)
		if n == 0 {
			r.skipTo(writePtr, d.Fault)
			break
		}
		if !taken {
			d.Held = true
			break
		}
		unread -= n
		d.Messages++
		d.Bytes += n
		if r.pos-published >= r.batch {
			r.readPtr.Store(r.pos)
			published = r.pos
		}
	}
	r.readPtr.Store(r.pos)
	r.stats.Messages += uint64(d.Messages)
	r.stats.Bytes += d.Bytes
	return d
}

// next reads one message of at most unread bytes, gives it to fn and returns its size and whether it
// was taken; or 0 and the fault.
func (r *Reader) next(unread uint64, fn func(Message) bool, f *Fault) (size uint64, taken bool) {
	if unread < MessageHeaderSize {
		*f = messageFault(messageHeader{}, r.pos, unread, r.capacity)
		return 0, false
	}
	var raw [MessageHeaderSize]byte
	if r.capacity-r.index >= MessageHeaderSize {
		raw, _ = r.data.Read16(r.index)
	} else {
		r.copyOut(raw[:], r.index)
	}
	h := decodeMessageHeader(raw)
	size = h.size()
	if size > unread {
		*f = messageFault(h, r.pos, unread, r.capacity)
		return 0, false
	}
	payload := r.buffer(uint64(h.length))
	r.copyOut(payload, r.indexAfter(MessageHeaderSize))
	crcOK := crc32.ChecksumIEEE(payload) == h.crc
	if !fn(Message{Type: h.typ, CRCOK: crcOK, Payload: payload}) {
		return size, false
	}
	if !crcOK {
		r.stats.CRCErrors++
	}
	r.index = r.indexAfter(size)
	r.pos += size
	return size, true
}

// indexAfter is the index of position pos+n, n ≤ capacity. Positions wrap at 2^64, and there
// the index is taken anew, as the format says.
func (r *Reader) indexAfter(n uint64) uint64 {
	if r.pos+n < r.pos {
		return (r.pos + n) % r.capacity
	}
	i := r.index + n
	if i >= r.capacity {
		i -= r.capacity
	}
	return i
}

// copyOut copies len(dst) ≤ capacity bytes of data at index into dst. Index and length are
// inside the window, which is what Cursor.Read would refuse.
func (r *Reader) copyOut(dst []byte, index uint64) {
	if first := r.capacity - index; uint64(len(dst)) > first {
		_ = r.data.Read(dst[:first], index)
		dst, index = dst[first:], 0
	}
	_ = r.data.Read(dst, index)
}

// buffer returns n bytes of the reader's buffer, which grows by powers of two up to the
// largest payload that the ring can hold.
func (r *Reader) buffer(n uint64) []byte {
	if uint64(len(r.buf)) < n {
		r.buf = make([]byte, min(uint64(1)<<bits.Len64(max(n, 4096)-1), r.capacity))
	}
	return r.buf[:n]
}

// skipTo counts a fault and goes on at writePtr.
func (r *Reader) skipTo(writePtr uint64, f Fault) {
	r.stats.Faults[f.Kind]++
	r.stats.Lost += f.Lost
	r.pos = writePtr
	r.index = writePtr % r.capacity
	r.readPtr.Store(r.pos)
}

// restoreHeader writes back the host's header fields where the guest changed them. Nothing is
// given up for that: the reader uses none of these copies. The guest's writer does.
func (r *Reader) restoreHeader(d *DrainResult) {
	const id = Version<<32 | Magic
	n := 0
	changed := func(field string, found, want uint64) {
		d.Restored[n] = Fault{Kind: HeaderChanged, Pos: r.pos, Value: found, Limit: want, Field: field}
		n++
		r.stats.Faults[HeaderChanged]++
	}
	if got := r.id.Load(); got != id {
		if uint32(got) != Magic {
			changed("magic", got&0xffffffff, Magic)
		}
		if got>>32 != Version {
			changed("version", got>>32, Version)
		}
		r.id.Store(id)
	}
	if got := uint64(r.capWord.Load()); got != r.capacity {
		changed("capacity", got, r.capacity)
		r.capWord.Store(uint32(r.capacity))
	}
	if got := r.readPtr.Load(); got != r.pos {
		changed("read_ptr", got, r.pos)
		r.readPtr.Store(r.pos)
	}
}
