package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// seedLimit is how large an image is that is worth changing: a mutator copies it every time.
const seedLimit = 1 << 10 // bytes

// addVectors adds the small ones of the vectors; TestVectors reads them all.
func addVectors(f *testing.F, add func(image []byte)) {
	images, err := filepath.Glob(filepath.Join("testdata", "vectors", "*.bin"))
	if err != nil || len(images) == 0 {
		f.Fatal("no vectors: ", err)
	}
	for _, name := range images {
		image, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if len(image) <= seedLimit {
			add(image)
		}
	}
}

// FuzzReader is a hostile guest: any memory, changed between drains. The reader never panics,
// never reads more than there is, always gets to write_ptr, and reads what is written after.
func FuzzReader(f *testing.F) {
	addVectors(f, func(image []byte) { f.Add(image, uint64(0), uint64(100), byte(1)) })
	f.Fuzz(func(t *testing.T, image []byte, pos, writePtr uint64, regions byte) {
		if len(image) < shm.HeaderSize+shm.MessageHeaderSize || len(image) > 1<<16 {
			return
		}
		mem := make([]byte, len(image))
		copy(mem, image)
		region := split(t, mem, 1+int(regions%5))
		r, err := shm.NewReaderAt(region, pos, shm.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range []uint64{binary.LittleEndian.Uint64(mem[16:]), writePtr, pos, pos + writePtr%uint64(len(mem))} {
			binary.LittleEndian.PutUint64(mem[16:], w)
			total := 0
			d := r.Drain(func(m shm.Message) bool { total += shm.MessageHeaderSize + len(m.Payload); return true })
			if uint64(total) != d.Bytes || total > len(mem)-shm.HeaderSize {
				t.Fatalf("%d bytes of messages, %+v", total, d)
			}
			if got := binary.LittleEndian.Uint64(mem[24:]); got != w {
				t.Fatalf("read_ptr is %d after a drain to %d, %+v", got, w, d)
			}
		}
		wr, err := shm.NewWriter(region)
		if err != nil {
			t.Fatal(err)
		}
		if err := wr.Write(shm.Exit, nil); err != nil {
			t.Fatal(err)
		}
		var got []entry
		if r.Drain(keep(&got)); len(got) != 1 || got[0].Type != shm.Exit || !got[0].CRCOK {
			t.Fatalf("the EXIT after all that: %v", got)
		}
	})
}

// FuzzSnapshot is a file of any bytes: no panic, no payload beyond the file, an end.
func FuzzSnapshot(f *testing.F) {
	addVectors(f, func(image []byte) { f.Add(image) })
	f.Fuzz(func(t *testing.T, image []byte) {
		s, err := shm.NewSnapshot(bytes.NewReader(image), uint64(len(image)))
		if err != nil {
			if !errors.Is(err, shm.ErrNoRing) {
				t.Fatal(err)
			}
			return
		}
		total := 0
		err = s.Drain(func(m shm.Message) error { total += shm.MessageHeaderSize + len(m.Payload); return nil })
		if err != nil && !errors.Is(err, shm.ErrFault) {
			t.Fatal(err)
		}
		if total > len(image) {
			t.Fatalf("%d bytes of messages in %d", total, len(image))
		}
	})
}

// FuzzHeader: every 40 bytes are a header, and it encodes to the same bytes.
func FuzzHeader(f *testing.F) {
	addVectors(f, func(image []byte) { f.Add(image) })
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < shm.HeaderSize {
			return
		}
		if got := shm.DecodeHeader([shm.HeaderSize]byte(b)).Encode(); !bytes.Equal(got[:], b[:shm.HeaderSize]) {
			t.Fatalf("%x became %x", b[:shm.HeaderSize], got)
		}
	})
}

// FuzzParams: any command line; what is understood is written back the same.
func FuzzParams(f *testing.F) {
	f.Add("KTSTR_SHM_BASE=0x1f000000 KTSTR_SHM_SIZE=0x1000000 quiet")
	f.Add("KTSTR_SHM_BASE=zz KTSTR_SHM_SIZE=0x")
	f.Fuzz(func(t *testing.T, cmdline string) {
		p, err := shm.ParseParams(cmdline)
		if err != nil {
			if !errors.Is(err, shm.ErrParams) {
				t.Fatal(err)
			}
			return
		}
		if back, err := shm.ParseParams(p.String()); err != nil || back != p {
			t.Fatalf("%v became %v, %v", p, back, err)
		}
	})
}
