package shm_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Whatever a guest does to the ring: the reader counts one fault of the right kind, gives up what
// it can't follow, publishes where it is, and reads the EXIT that is written after.
func TestFaults(t *testing.T) {
	const capacity = 1024 - 40
	for _, tc := range []struct {
		name string
		lie  func(*ring) // after one message of 20 bytes, which is read
		want shm.FaultKind
		lost uint64
	}{
		{"write_ptr behind", func(r *ring) { r.set64(atWritePtr, 19) }, shm.WritePtrBehind, 0},
		{"write_ptr at 0", func(r *ring) { r.set64(atWritePtr, 0) }, shm.WritePtrBehind, 0},
		{"write_ptr one too far", func(r *ring) { r.set64(atWritePtr, 20+capacity+1) }, shm.WritePtrAhead, capacity},
		{"write_ptr far ahead", func(r *ring) { r.set64(atWritePtr, 1<<62) }, shm.WritePtrAhead, capacity},
		{"length over the ring", func(r *ring) {
			r.header(20, capacity-15, 0)
			r.set64(atWritePtr, 20+100)
		}, shm.BadLength, 100},
		{"length of all ones", func(r *ring) { r.header(20, 0xffffffff, 0); r.set64(atWritePtr, 20+16) }, shm.BadLength, 16},
		{"length over what is written", func(r *ring) { r.header(20, 5, 0); r.set64(atWritePtr, 20+20) }, shm.Incomplete, 20},
		{"no room for a header", func(r *ring) { r.set64(atWritePtr, 20+15) }, shm.Incomplete, 15},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRing(t, 1024, shm.Limits{})
			r.write(shm.ScenarioStart, "abcd")
			r.drain()
			tc.lie(r)
			got, d := r.drain()
			if len(got) != 0 || d.Fault.Kind != tc.want || d.Fault.Lost != tc.lost {
				t.Fatalf("%v, %+v; want %v with %d bytes lost", got, d.Fault, tc.want, tc.lost)
			}
			if !errors.Is(&d.Fault, shm.ErrFault) || d.Fault.Error() == "" {
				t.Errorf("the fault is no ErrFault: %v", &d.Fault)
			}
			if r.get64(atReadPtr) != r.get64(atWritePtr) {
				t.Errorf("read_ptr is 0x%x, write_ptr 0x%x", r.get64(atReadPtr), r.get64(atWritePtr))
			}
			s := r.reader.Stats()
			if s.Faults[tc.want] != 1 || s.Lost != tc.lost {
				t.Errorf("%+v", s)
			}
			r.write(shm.Exit, "\x07\x00\x00\x00")
			if got, d := r.drain(); len(got) != 1 || got[0].Type != shm.Exit || !got[0].CRCOK || d.Fault.Kind != shm.NoFault {
				t.Errorf("the EXIT after it: %v, %+v", got, d)
			}
		})
	}
}

// header puts a message header at a position before the data's end.
func (r *ring) header(pos int, length, crc uint32) {
	b := r.mem[40+pos:]
	binary.LittleEndian.PutUint32(b, uint32(shm.Exit))
	binary.LittleEndian.PutUint32(b[4:], length)
	binary.LittleEndian.PutUint32(b[8:], crc)
}

// Messages before the broken one are read; it and what follows it are given up.
func TestFaultBehindGoodMessages(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	r.write(1, "one")
	r.write(2, "two")
	r.write(3, "three")
	binary.LittleEndian.PutUint32(r.mem[40+19+4:], 5000) // the second one's length
	got, d := r.drain()
	if len(got) != 1 || got[0].Type != 1 || d.Messages != 1 || d.Fault.Kind != shm.BadLength || d.Fault.Lost != 19+21 {
		t.Errorf("%v, %+v", got, d)
	}
}

// The header's copies of what the host knows are written back, and believed in no case.
func TestHeaderFieldsAreRestored(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	r.write(1, "before")
	fresh := append([]byte{}, r.mem[:12]...)
	copy(r.mem[0:], "\xde\xad\xbe\xef\x09\x00\x00\x00\xff\xff\xff\xff")
	r.set64(atReadPtr, 777)
	got, d := r.drain()
	if len(got) != 1 || got[0].Type != 1 || d.Fault.Kind != shm.NoFault {
		t.Errorf("%v, %+v", got, d.Fault)
	}
	fields := ""
	for _, f := range d.Restored {
		fields += f.Field + " "
	}
	if fields != "magic version capacity read_ptr " || r.reader.Stats().Faults[shm.HeaderChanged] != 4 {
		t.Errorf("restored %q, %+v", fields, r.reader.Stats())
	}
	if string(r.mem[:12]) != string(fresh) || r.get64(atReadPtr) != 22 {
		t.Errorf("the header is %x, read_ptr %d", r.mem[:12], r.get64(atReadPtr))
	}
	r.write(2, "after")
	if got, d := r.drain(); len(got) != 1 || d.Restored[0].Kind != shm.NoFault {
		t.Errorf("after it: %v, %+v", got, d.Restored)
	}
}
