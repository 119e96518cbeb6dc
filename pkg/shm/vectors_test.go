package shm_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// vector is what the reference implementation reads from an image: testdata/vectors/README.md.
type vector struct {
	Name    string
	Image   string
	Offset  int    `json:"shm_offset"`
	Size    int    `json:"shm_size"`
	Drops   uint64 `json:"drops"`
	Live    uint64 `json:"live_drops"`
	ReadPtr uint64 `json:"read_ptr_after_live,string"`
	Entries []struct {
		Type    shm.Type
		Payload string
		CRCOK   bool `json:"crc_ok"`
	}
}

// vectors calls fn for each vector with its region's bytes.
func vectors(t *testing.T, fn func(t *testing.T, v vector, region []byte)) {
	dir := filepath.Join("testdata", "vectors")
	text, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		t.Run(v.Name, func(t *testing.T) {
			image, err := os.ReadFile(filepath.Join(dir, v.Image))
			if err != nil {
				t.Fatal(err)
			}
			fn(t, v, bytes.Clone(image[v.Offset:v.Offset+v.Size]))
		})
	}
}

func (v vector) check(t *testing.T, got []entry) {
	t.Helper()
	if len(got) != len(v.Entries) {
		t.Fatalf("%d entries, want %d", len(got), len(v.Entries))
	}
	for i, want := range v.Entries {
		if g := got[i]; g.Type != want.Type || hex.EncodeToString(g.Payload) != want.Payload || g.CRCOK != want.CRCOK {
			t.Errorf("entry %d is %+v, want %+v", i, g, want)
		}
	}
}

func TestVectorsSnapshot(t *testing.T) {
	// What the reference returns nothing or a part of, we say why.
	noRing := []string{"magic-bad", "magic-zero", "buf-short"}
	broken := []string{"incomplete", "capacity-zero", "capacity-max", "read-past-write",
		"used-over-capacity", "length-max"}
	vectors(t, func(t *testing.T, v vector, region []byte) {
		s, err := shm.NewSnapshot(bytes.NewReader(region), uint64(len(region)))
		if slices.Contains(noRing, v.Name) {
			if !errors.Is(err, shm.ErrNoRing) {
				t.Fatalf("%v, want ErrNoRing", err)
			}
			v.check(t, nil)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		var got []entry
		err = s.Drain(func(m shm.Message) error { keep(&got)(m); return nil })
		if errors.Is(err, shm.ErrFault) != slices.Contains(broken, v.Name) {
			t.Errorf("the drain ended with %v", err)
		}
		v.check(t, got)
		if s.Drops() != v.Drops {
			t.Errorf("drops %d, want %d", s.Drops(), v.Drops)
		}
	})
}

func TestVectorsLive(t *testing.T) {
	vectors(t, func(t *testing.T, v vector, region []byte) {
		if len(region) < shm.HeaderSize+shm.MessageHeaderSize {
			if _, err := shm.NewReader(split(t, region, 1), shm.Limits{}); !errors.Is(err, shm.ErrRegion) {
				t.Fatal(err)
			}
			return
		}
		h := shm.DecodeHeader([shm.HeaderSize]byte(region))
		for _, regions := range []int{1, 4} {
			mem := bytes.Clone(region)
			r, err := shm.NewReaderAt(split(t, mem, regions), h.ReadPtr, shm.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			var got []entry
			d := r.Drain(keep(&got))
			if r.Stats().Faults[shm.HeaderChanged] > 0 && len(v.Entries) == 0 {
				// The reference gives up where a header field is wrong. The reader knows better
				// than the header, and reads what is there.
				for _, e := range got {
					if !e.CRCOK {
						t.Errorf("read %+v", e)
					}
				}
			} else {
				v.check(t, got)
			}
			after := shm.DecodeHeader([shm.HeaderSize]byte(mem))
			// Where the ring is broken the reference stays, and we go on at write_ptr.
			want := v.ReadPtr
			if d.Fault.Kind != shm.NoFault {
				want = after.WritePtr
			}
			if after.ReadPtr != want && len(got) == len(v.Entries) {
				t.Errorf("read_ptr is %d, want %d", after.ReadPtr, want)
			}
			if h.Magic == shm.Magic && r.Stats().Drops != v.Live {
				t.Errorf("drops %d, want %d", r.Stats().Drops, v.Live)
			}
		}
	})
}
