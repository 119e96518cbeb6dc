package shm_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

func drainImage(image []byte) (got []entry, ring *shm.Snapshot, err error) {
	ring, err = shm.NewSnapshot(bytes.NewReader(image), uint64(len(image)))
	if err != nil {
		return nil, ring, err
	}
	err = ring.Drain(func(m shm.Message) error { keep(&got)(m); return nil })
	return got, ring, err
}

// A ring that is cut anywhere gives the messages that are whole before the cut, and says that it
// is cut.
func TestSnapshotCutAnywhere(t *testing.T) {
	r := newRing(t, 40+200, shm.Limits{})
	for i := range shm.Type(5) {
		r.write(i, "0123456789")
	}
	for n := range r.mem {
		got, _, err := drainImage(r.mem[:n])
		switch {
		case n < 40:
			if !errors.Is(err, shm.ErrNoRing) {
				t.Errorf("cut at %d: %v", n, err)
			}
		default:
			want := min(5, (n-40)/26)
			if len(got) != want || !errors.Is(err, shm.ErrFault) {
				t.Errorf("cut at %d: %d messages, want %d; %v", n, len(got), want, err)
			}
		}
	}
	if got, _, err := drainImage(r.mem); len(got) != 5 || err != nil {
		t.Errorf("whole: %d messages, %v", len(got), err)
	}
}

// The callback's error ends the drain as it is.
func TestSnapshotStopsAsAsked(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	r.write(1, "a")
	r.write(2, "b")
	s, err := shm.NewSnapshot(bytes.NewReader(r.mem), uint64(len(r.mem)))
	if err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	n := 0
	if err := s.Drain(func(shm.Message) error { n++; return enough }); err != enough || n != 1 {
		t.Errorf("%v after %d messages", err, n)
	}
}

// However the messages in an image are sized, draining it takes no more memory than the image.
func TestSnapshotMemory(t *testing.T) {
	const size = 8 << 20
	for name, sizes := range map[string][]int{
		"one message": {size - 40 - 16},
		"growing":     {1 << 10, 10 << 10, 100 << 10, 500 << 10, 1 << 20, 2 << 20, 3 << 20},
	} {
		r := newRing(t, size, shm.Limits{})
		for _, n := range sizes {
			r.write(1, string(make([]byte, n)))
		}
		image := bytes.NewReader(r.mem)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, err := shm.NewSnapshot(image, size)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := s.Drain(func(shm.Message) error { n++; return nil }); err != nil || n != len(sizes) {
			t.Fatal(n, err)
		}
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > size+1<<20 {
			t.Errorf("%s: %d bytes allocated for an image of %d", name, took, size)
		}
	}
}
