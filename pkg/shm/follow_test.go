package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// polled is what a follower sees in a few calls, added up.
type polled struct {
	entries []entry
	missed  uint64
	faults  []shm.FaultKind
	anew    int
}

// polls calls a follower until it has nothing more to say.
func polls(t testing.TB, f *shm.Follower) (p polled) {
	t.Helper()
	for quiet := 0; quiet < 3; { // what is in doubt is said in the call after
		n := len(p.entries)
		s, err := f.Poll(func(m shm.Message) error { keep(&p.entries)(m); return nil })
		if err != nil {
			t.Fatal(err)
		}
		p.missed += s.Missed
		if s.Fault.Kind != shm.NoFault {
			p.faults = append(p.faults, s.Fault.Kind)
		}
		if s.Restarted {
			p.anew++
		}
		quiet++
		if s.More || len(p.entries) > n {
			quiet = 0
		}
	}
	return p
}

func (r *ring) follow(all bool) *shm.Follower {
	r.t.Helper()
	f, err := shm.NewFollower(bytes.NewReader(r.mem), uint64(len(r.mem)), all)
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// A follower sees what is written, whoever reads it, and changes nothing.
func TestFollower(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	r.write(1, "read")
	r.drain()
	r.write(2, "unread")
	f, all := r.follow(false), r.follow(true)
	before := bytes.Clone(r.mem)
	if p := polls(t, f); len(p.entries) != 1 || p.entries[0].Type != 2 || p.missed != 0 || p.faults != nil {
		t.Errorf("%+v", p)
	}
	if p := polls(t, all); len(p.entries) != 2 || string(p.entries[0].Payload) != "read" {
		t.Errorf("all: %+v", p)
	}
	if !bytes.Equal(before, r.mem) {
		t.Error("the ring has changed")
	}
	for i := range 1000 { // many laps
		r.drain()
		r.write(shm.Type(i), string(make([]byte, i%300)))
		if p := polls(t, f); len(p.entries) != 1 || p.entries[0].Type != shm.Type(i) || len(p.entries[0].Payload) != i%300 ||
			p.missed != 0 || p.faults != nil {
			t.Fatalf("message %d: %+v", i, p)
		}
	}
	if _, err := shm.NewFollower(bytes.NewReader(r.mem), 1024, true); !errors.Is(err, shm.ErrWrapped) {
		t.Errorf("all of a ring that has wrapped: %v", err)
	}
	if _, err := shm.NewFollower(bytes.NewReader(r.mem[:1000]), 1000, false); !errors.Is(err, shm.ErrFault) {
		t.Errorf("half a ring: %v", err)
	}
}

// One that was overtaken says how much it missed, and goes on where a message begins.
func TestFollowerIsOvertaken(t *testing.T) {
	r := newRing(t, 40+240, shm.Limits{})
	f := r.follow(false)
	for range 100 {
		r.write(1, "0123456789")
		r.drain()
	}
	r.write(2, "last")
	if p := polls(t, f); p.missed != 2600 || p.faults != nil || len(p.entries) != 1 || p.entries[0].Type != 2 {
		t.Errorf("%+v", p)
	}
	// The writer may be at work where three quarters of the ring lie behind it.
	for range 8 {
		r.write(3, "0123456789")
		r.drain()
	}
	s, err := f.Poll(func(shm.Message) error { return errors.New("a message in doubt") })
	if err != nil || s.Missed != 0 || s.More {
		t.Errorf("%+v, %v", s, err)
	}
	r.write(4, "")
	if p := polls(t, f); p.missed != 208 || len(p.entries) != 1 || p.entries[0].Type != 4 {
		t.Errorf("a writer that goes on: %+v", p)
	}
	for range 8 {
		r.write(5, "0123456789")
		r.drain()
	}
	if p := polls(t, f); p.missed != 0 || len(p.entries) != 8 {
		t.Errorf("a writer that has paused: %+v", p)
	}
}

// A message whose CRC is wrong is shown as one if it stays so: a writer may have been at work on it.
func TestFollowerLooksTwice(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	f := r.follow(false)
	r.write(1, "payload")
	at := shm.HeaderSize + shm.MessageHeaderSize
	r.mem[at] ^= 1
	if s, err := f.Poll(func(shm.Message) error { return errors.New("a message in doubt") }); err != nil || s.More {
		t.Errorf("%+v, %v", s, err)
	}
	r.mem[at] ^= 1
	if p := polls(t, f); len(p.entries) != 1 || !p.entries[0].CRCOK {
		t.Errorf("%+v", p)
	}
	r.write(2, "payload")
	r.mem[at+23] ^= 1
	if p := polls(t, f); len(p.entries) != 1 || p.entries[0].CRCOK {
		t.Errorf("%+v", p)
	}
}

// A ring that breaks the protocol is said to, and is read from where that can be done.
func TestFollowerOfABrokenRing(t *testing.T) {
	for name, c := range map[string]struct {
		meddle func(r *ring)
		want   shm.FaultKind
	}{
		"ahead":      {func(r *ring) { r.set64(atWritePtr, 1<<40) }, shm.WritePtrAhead},
		"behind":     {func(r *ring) { r.set64(atWritePtr, 10); r.set64(atReadPtr, 26) }, shm.WritePtrBehind},
		"length":     {func(r *ring) { binary.LittleEndian.PutUint32(r.mem[40+52+4:], 1<<31) }, shm.BadLength},
		"incomplete": {func(r *ring) { binary.LittleEndian.PutUint32(r.mem[40+52+4:], 30) }, shm.Incomplete},
		"short":      {func(r *ring) { r.set64(atWritePtr, 26*2+3) }, shm.Incomplete},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, 1024, shm.Limits{})
			f := r.follow(false)
			r.write(1, "0123456789")
			r.write(1, "0123456789")
			if p := polls(t, f); len(p.entries) != 2 {
				t.Fatalf("%+v", p)
			}
			r.write(1, "0123456789")
			c.meddle(r)
			p := polls(t, f)
			if len(p.faults) != 1 || p.faults[0] != c.want || p.missed != 0 || p.anew != 0 {
				t.Fatalf("%+v, want %v", p, c.want)
			}
			r.set64(atReadPtr, r.get64(atWritePtr)) // the ring's reader goes on there, too
			r.write(3, "new")
			if p := polls(t, f); len(p.entries) != 1 || p.entries[0].Type != 3 || p.faults != nil {
				t.Errorf("afterwards: %+v", p)
			}
		})
	}
}

// A ring that is begun anew, in a region of the same size or of another one, is followed from its start.
func TestFollowerOfANewRing(t *testing.T) {
	r := newRing(t, 2048, shm.Limits{})
	f := r.follow(false)
	for _, size := range []uint64{2048, 1024, 2048} {
		r.write(1, "of the old one")
		r.drain()
		polls(t, f)
		region, err := r.region.Sub(0, size)
		if err != nil || shm.Init(region) != nil {
			t.Fatal(err)
		}
		if r.writer, err = shm.NewWriter(region); err != nil {
			t.Fatal(err)
		}
		if r.reader, err = shm.NewReader(region, shm.Limits{}); err != nil {
			t.Fatal(err)
		}
		r.write(2, "new")
		if p := polls(t, f); p.anew != 1 || len(p.entries) != 1 || p.entries[0].Type != 2 || p.faults != nil {
			t.Errorf("%d: %+v", size, p)
		}
	}
}

// A message that takes most of a large ring is read whole.
func TestFollowerLargeMessage(t *testing.T) {
	r := newRing(t, 4<<20, shm.Limits{})
	f := r.follow(false)
	for range 3 {
		r.write(1, "small")
		r.write(2, string(bytes.Repeat([]byte("large "), 500_000)))
		r.write(1, "small")
		if p := polls(t, f); len(p.entries) != 3 || !p.entries[1].CRCOK || len(p.entries[1].Payload) != 3_000_000 {
			t.Errorf("%d messages, missed %d, %v", len(p.entries), p.missed, p.faults)
		}
		r.drain()
	}
}

// One call passes on no more than a chunk of small messages, also where a large one was before.
func TestFollowerOfALargeMessageThatWasNone(t *testing.T) {
	r := newRing(t, 4<<20, shm.Limits{})
	f := r.follow(false)
	r.set64(atWritePtr, 3<<20)
	binary.LittleEndian.PutUint32(r.mem[shm.HeaderSize+4:], 3<<20-shm.MessageHeaderSize)
	none := func(shm.Message) error { return errors.New("a message") }
	if s, err := f.Poll(none); err != nil || !s.More {
		t.Fatalf("%+v, %v", s, err)
	}
	clear(r.mem[shm.HeaderSize:]) // messages without payloads
	for all := 0; ; {
		n := 0
		s, err := f.Poll(func(m shm.Message) error { n++; return nil })
		if all += n; err != nil || n*shm.MessageHeaderSize > 256<<10 {
			t.Fatalf("%d messages, %+v, %v", n, s, err)
		}
		if !s.More {
			if all != 3<<20/shm.MessageHeaderSize {
				t.Errorf("%d messages in all", all)
			}
			return
		}
	}
}

// sparse is an image with zeros behind its start.
type sparse []byte

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(s)) {
		copy(p, s[off:])
	}
	return len(p), nil
}

// A header can't make a follower believe in a ring that is larger than the format allows, however large the file is.
func TestFollowerOfAHugeRing(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	f, err := shm.NewFollower(sparse(r.mem), 8<<30, false)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(r.mem[atCapacity:], shm.MaxCapacity+1)
	if p := polls(t, f); p.anew != 0 {
		t.Errorf("%+v", p)
	}
	binary.LittleEndian.PutUint32(r.mem[atCapacity:], 1024-shm.HeaderSize)
	r.write(1, "still there")
	if p := polls(t, f); len(p.entries) != 1 {
		t.Errorf("%+v", p)
	}
}

// A file of a ring that a writer floods and a reader drains: whatever is seen was written so, in order, and what is not
// seen is missed. A file that gets shorter is an error, not a signal.
func TestFollowerOfAFlood(t *testing.T) {
	const size = 64 << 10
	file, err := os.Create(filepath.Join(t.TempDir(), "ring"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	region := split(t, mem, 1)
	if err := shm.Init(region); err != nil {
		t.Fatal(err)
	}
	w, err := shm.NewWriter(region)
	if err != nil {
		t.Fatal(err)
	}
	r, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := shm.NewFollower(file, size, false) // before the first message, or it would not know of some
	if err != nil {
		t.Fatal(err)
	}
	const messages = 300_000
	written := make(chan uint64, 1)
	go func() {
		var bytes uint64
		for i := range uint32(messages) {
			if i%1000 == 0 {
				time.Sleep(time.Microsecond) // on one processor the follower has its turn, too
			}
			payload := make([]byte, 4+i%100) // zeros, which are headers of messages as well
			binary.LittleEndian.PutUint32(payload, i)
			for w.Write(shm.Type(i%7+1), payload) != nil {
				r.Drain(func(shm.Message) bool { return true })
			}
			bytes += shm.MessageHeaderSize + uint64(len(payload))
		}
		written <- bytes
	}()
	var seen, missed, seenBytes, total uint64
	next := int64(-1)
	for total == 0 || seenBytes+missed < total {
		s, err := f.Poll(func(m shm.Message) error {
			if len(m.Payload) < 4 || !m.CRCOK {
				t.Fatalf("message of type %v, %d bytes, CRC %t", m.Type, len(m.Payload), m.CRCOK)
			}
			i := binary.LittleEndian.Uint32(m.Payload)
			if int64(i) <= next || m.Type != shm.Type(i%7+1) || len(m.Payload) != int(4+i%100) {
				t.Fatalf("message %d of type %v, %d bytes after message %d", i, m.Type, len(m.Payload), next)
			}
			next = int64(i)
			seen++
			seenBytes += shm.MessageHeaderSize + uint64(len(m.Payload))
			return nil
		})
		if err != nil || s.Fault.Kind != shm.NoFault || s.Restarted {
			t.Fatalf("%+v, %v", s, err)
		}
		missed += s.Missed
		select {
		case total = <-written:
		default:
		}
	}
	if seenBytes+missed != total || seen == 0 {
		t.Errorf("%d bytes in %d messages and %d missed, of %d", seenBytes, seen, missed, total)
	}
	t.Logf("%d of %d messages seen", seen, messages)
	if err := file.Truncate(100); err != nil {
		t.Fatal(err)
	}
	if _, err := shm.NewFollower(file, size, false); err != nil {
		t.Fatal(err) // its header is there
	}
	if err := file.Truncate(10); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Poll(func(shm.Message) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of a file that got shorter: %v", err)
	}
}

// FuzzFollower is a hostile writer: any memory, changed between calls. The follower never panics, never reads more than
// there is, and reads what is written when the ring is in order again.
func FuzzFollower(f *testing.F) {
	addVectors(f, func(image []byte) { f.Add(image, uint64(100), uint64(0), uint16(20), uint32(7)) })
	f.Fuzz(func(t *testing.T, image []byte, writePtr, readPtr uint64, at uint16, value uint32) {
		if len(image) < shm.HeaderSize+shm.MessageHeaderSize+8 || len(image) > 1<<16 {
			return
		}
		mem := bytes.Clone(image)
		follower, err := shm.NewFollower(bytes.NewReader(mem), uint64(len(mem)), at%2 == 0)
		if err != nil {
			return
		}
		poll := func() (got []entry) {
			for range 6 {
				total := 0
				_, err := follower.Poll(func(m shm.Message) error {
					total += shm.MessageHeaderSize + len(m.Payload)
					keep(&got)(m)
					return nil
				})
				if err != nil || total > len(mem) {
					t.Fatalf("%d bytes of messages, %v", total, err)
				}
			}
			return got
		}
		poll()
		binary.LittleEndian.PutUint64(mem[atWritePtr:], writePtr)
		poll()
		binary.LittleEndian.PutUint64(mem[atReadPtr:], readPtr)
		binary.LittleEndian.PutUint32(mem[int(at)%(len(mem)-4):], value)
		poll()
		region := split(t, mem, 1)
		if err := shm.Init(region); err != nil {
			t.Fatal(err)
		}
		w, err := shm.NewWriter(region)
		if err != nil {
			t.Fatal(err)
		}
		poll()
		if err := w.Write(7, []byte("in order")); err != nil {
			t.Fatal(err)
		}
		if got := poll(); len(got) == 0 || string(got[len(got)-1].Payload) != "in order" {
			t.Fatalf("%+v", got)
		}
	})
}
