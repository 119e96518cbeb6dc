package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Offsets of header fields, as the format has them.
const (
	atCapacity = 8
	atWritePtr = 16
	atReadPtr  = 24
	atDrops    = 32
)

// entry is a message that a test keeps.
type entry struct {
	Type    shm.Type
	Payload []byte
	CRCOK   bool
}

func keep(into *[]entry) func(shm.Message) bool {
	return func(m shm.Message) bool {
		*into = append(*into, entry{m.Type, append([]byte{}, m.Payload...), m.CRCOK})
		return true
	}
}

// split makes a window over the bytes of mem, cut into n regions.
func split(t testing.TB, mem []byte, n int) *guestmem.Window {
	t.Helper()
	const base = 0x1000
	var regions []guestmem.Region
	// The first cut leaves the header's words whole: they must lie in one region each.
	for i, start := 0, 0; i < n && start < len(mem); i++ {
		end := max(start+1, shm.HeaderSize, len(mem)*(i+1)/n)
		if i == n-1 {
			end = len(mem)
		}
		regions = append(regions, guestmem.Region{Base: guestmem.Addr(base + start), Mem: mem[start:min(end, len(mem))]})
		start = end
	}
	m, err := guestmem.New(regions...)
	if err != nil {
		t.Fatal(err)
	}
	w, err := m.Window(base, uint64(len(mem)))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// ring is a ring in host memory, for its writer, its reader and whoever meddles.
type ring struct {
	t      testing.TB
	mem    []byte
	region *guestmem.Window
	writer *shm.Writer
	reader *shm.Reader
}

func newRing(t testing.TB, size int, limits shm.Limits) *ring {
	return newRingAt(t, size, 1, 0, limits)
}

// newRingAt makes a ring of size bytes in n regions whose positions both are pos.
func newRingAt(t testing.TB, size, n int, pos uint64, limits shm.Limits) *ring {
	t.Helper()
	r := &ring{t: t, mem: make([]byte, size)}
	r.region = split(t, r.mem, n)
	if err := shm.Init(r.region); err != nil {
		t.Fatal(err)
	}
	r.set64(atWritePtr, pos)
	r.set64(atReadPtr, pos)
	var err error
	if r.writer, err = shm.NewWriter(r.region); err != nil {
		t.Fatal(err)
	}
	if r.reader, err = shm.NewReaderAt(r.region, pos, limits); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *ring) set64(off int, v uint64) { binary.LittleEndian.PutUint64(r.mem[off:], v) }
func (r *ring) get64(off int) uint64    { return binary.LittleEndian.Uint64(r.mem[off:]) }

func (r *ring) write(typ shm.Type, payload string) {
	r.t.Helper()
	if err := r.writer.Write(typ, []byte(payload)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *ring) drain() ([]entry, shm.DrainResult) {
	var got []entry
	d := r.reader.Drain(keep(&got))
	return got, d
}

func TestHeaderBytes(t *testing.T) {
	h := shm.Header{Magic: 0x53544d52, Version: 1, Capacity: 216, Control: [4]byte{'D', 'S', 0xdd, 2},
		WritePtr: 0x1122334455667788, ReadPtr: 0xaabbccddeeff0011, Drops: 42}
	want := []byte{
		0x52, 0x4d, 0x54, 0x53, 1, 0, 0, 0, 216, 0, 0, 0, 'D', 'S', 0xdd, 2,
		0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
		0x11, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa,
		42, 0, 0, 0, 0, 0, 0, 0,
	}
	got := h.Encode()
	if !bytes.Equal(got[:], want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	if back := shm.DecodeHeader(got); back != h {
		t.Errorf("decoded %+v", back)
	}
}

func TestNewHeaderCapacity(t *testing.T) {
	for size, want := range map[uint64]uint32{0: 0, 39: 0, 40: 0, 140: 100, 1024: 984, 1 << 40: shm.MaxCapacity} {
		if h := shm.NewHeader(size); h.Capacity != want || h.Magic != shm.Magic || h.Version != 1 {
			t.Errorf("region of %d: %+v, want capacity %d", size, h, want)
		}
	}
}

func TestTypeNames(t *testing.T) {
	want := []string{"STIM", "SCST", "SCEN", "EXIT", "TEST", "SCDX", "CRSH", "PMET", "RAWO", "STDO", "STDE",
		"SXST", "SXDP", "SXOU"}
	for i, typ := range shm.Types() {
		if typ.String() != want[i] || binary.BigEndian.Uint32([]byte(want[i])) != uint32(typ) || !typ.Known() {
			t.Errorf("type %d is %v, want %s", i, typ, want[i])
		}
		for _, name := range []string{want[i], strings.ToLower(want[i]), fmt.Sprintf("%#x", uint32(typ))} {
			if got, err := shm.ParseType(name); err != nil || got != typ {
				t.Errorf("%s is %v, %v", name, got, err)
			}
		}
	}
	for _, name := range []string{"", "STI", "STIMM", "0x", "0x100000000", "-1"} {
		if got, err := shm.ParseType(name); err == nil {
			t.Errorf("%q is %v", name, got)
		}
	}
	if got := shm.Type(0x42).String(); got != "0x00000042" {
		t.Error(got)
	}
}

func TestMessageBytes(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	r.write(shm.Exit, "123456789")
	want := []byte{'T', 'I', 'X', 'E', 9, 0, 0, 0, 0x26, 0x39, 0xf4, 0xcb, 0, 0, 0, 0} // CRC-32 check value 0xcbf43926
	if got := r.mem[40:56]; !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if r.get64(atWritePtr) != 25 {
		t.Errorf("write_ptr is %d, want 25", r.get64(atWritePtr))
	}
}

func TestDrainInOrder(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	if got, d := r.drain(); got != nil || d.Messages != 0 || d.Fault.Kind != shm.NoFault {
		t.Fatalf("an empty ring gave %v, %+v", got, d)
	}
	r.write(1, "first")
	r.write(2, "")
	r.write(3, "third")
	got, d := r.drain()
	want := []entry{{1, []byte("first"), true}, {2, []byte{}, true}, {3, []byte("third"), true}}
	if !slices.EqualFunc(got, want, func(a, b entry) bool {
		return a.Type == b.Type && bytes.Equal(a.Payload, b.Payload) && a.CRCOK == b.CRCOK
	}) {
		t.Errorf("got %v", got)
	}
	if d.Messages != 3 || d.Bytes != 58 || r.get64(atReadPtr) != 58 {
		t.Errorf("%+v, read_ptr %d", d, r.get64(atReadPtr))
	}
}

// Writes and drains in turn, as while a guest runs: the reader's read_ptr makes room.
func TestRoundsMakeRoom(t *testing.T) {
	r := newRing(t, 40+128, shm.Limits{})
	for round := range shm.Type(300) {
		for i := range shm.Type(3) {
			r.write(round*10+i, "aa")
		}
		got, _ := r.drain()
		if len(got) != 3 || got[0].Type != round*10 || !got[2].CRCOK {
			t.Fatalf("round %d: %v", round, got)
		}
	}
}

func TestFullRingDrops(t *testing.T) {
	r := newRing(t, 40+60, shm.Limits{})
	full := string(bytes.Repeat([]byte{0xaa}, 44))
	r.write(1, full) // 16 + 44: all of it
	for range 3 {
		if err := r.writer.Write(2, []byte("x")); !errors.Is(err, shm.ErrFull) {
			t.Fatal(err)
		}
	}
	got, _ := r.drain()
	if len(got) != 1 || string(got[0].Payload) != full || r.reader.Stats().Drops != 3 || r.get64(atDrops) != 3 {
		t.Errorf("%d messages, %+v", len(got), r.reader.Stats())
	}
	r.write(2, "x")
	if got, _ := r.drain(); len(got) != 1 {
		t.Errorf("after the drain: %v", got)
	}
}

func TestDropsSaturate(t *testing.T) {
	r := newRing(t, 40+32, shm.Limits{})
	r.set64(atDrops, ^uint64(0))
	if err := r.writer.Write(1, make([]byte, 100)); !errors.Is(err, shm.ErrFull) || r.get64(atDrops) != ^uint64(0) {
		t.Errorf("%v, drops %d", err, r.get64(atDrops))
	}
}

func TestDropsShowTheMaximum(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	for _, drops := range []uint64{3, 7, 2} {
		r.set64(atDrops, drops)
		r.drain()
	}
	if got := r.reader.Stats().Drops; got != 7 {
		t.Errorf("drops are %d, want 7", got)
	}
}

func TestDamagedPayload(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	r.write(1, "integrity")
	r.mem[40+16] ^= 0xff
	r.write(2, "next")
	got, d := r.drain()
	if len(got) != 2 || got[0].CRCOK || !got[1].CRCOK || r.reader.Stats().CRCErrors != 1 || d.Fault.Kind != shm.NoFault {
		t.Errorf("%v, %+v", got, r.reader.Stats())
	}
}

func TestWriterRefuses(t *testing.T) {
	r := newRing(t, 1024, shm.Limits{})
	r.set64(atReadPtr, 100) // ahead of write_ptr 0
	if err := r.writer.Write(1, nil); !errors.Is(err, shm.ErrCorrupt) || r.get64(atDrops) != 0 {
		t.Errorf("read_ptr ahead: %v", err)
	}
	for _, capacity := range []uint32{0, 985, 0xffffffff} {
		r := newRing(t, 1024, shm.Limits{})
		binary.LittleEndian.PutUint32(r.mem[atCapacity:], capacity)
		if err := r.writer.Write(1, nil); !errors.Is(err, shm.ErrCorrupt) || r.get64(atWritePtr) != 0 {
			t.Errorf("capacity %d: %v", capacity, err)
		}
	}
	if _, err := shm.NewWriter(split(t, make([]byte, 1024), 1)); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("no magic: %v", err)
	}
}

func TestRegionsThatHoldNoRing(t *testing.T) {
	for _, size := range []int{1, 39, 40, 55} {
		w := split(t, make([]byte, size), 1)
		if err := shm.Init(w); !errors.Is(err, shm.ErrRegion) {
			t.Errorf("Init of %d bytes: %v", size, err)
		}
		if _, err := shm.NewReader(w, shm.Limits{}); !errors.Is(err, shm.ErrRegion) {
			t.Errorf("NewReader of %d bytes: %v", size, err)
		}
		if _, err := shm.NewWriter(w); !errors.Is(err, shm.ErrRegion) {
			t.Errorf("NewWriter of %d bytes: %v", size, err)
		}
	}
	odd := split(t, make([]byte, 1028)[4:], 1)
	if _, err := shm.NewReader(odd, shm.Limits{}); !errors.Is(err, guestmem.ErrMisaligned) {
		t.Errorf("a region at an odd address: %v", err)
	}
}

// Positions are counted in 64 bits and wrap: the distance and the place in the data still hold.
func TestPositionsWrap(t *testing.T) {
	for back := range uint64(60) {
		r := newRingAt(t, 40+96, 1, -back, shm.Limits{})
		for i := range shm.Type(8) {
			r.write(i, "wrapping")
			got, d := r.drain()
			if len(got) != 1 || got[0].Type != i || string(got[0].Payload) != "wrapping" || !got[0].CRCOK {
				t.Fatalf("from -%d, message %d: %v, %+v", back, i, got, d)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	r := newRing(t, 4096, shm.Limits{Messages: 3})
	for i := range shm.Type(8) {
		r.write(i, "abcd")
	}
	for _, want := range []struct {
		n    int
		more bool
	}{{3, true}, {3, true}, {2, false}} {
		if got, d := r.drain(); len(got) != want.n || d.More != want.more {
			t.Errorf("%d messages, more %t; want %+v", len(got), d.More, want)
		}
	}
	r = newRing(t, 4096, shm.Limits{Bytes: 50})
	for i := range shm.Type(8) {
		r.write(i, "abcd") // 20 bytes each
	}
	if got, d := r.drain(); len(got) != 3 || !d.More {
		t.Errorf("%d messages for 50 bytes, more %t", len(got), d.More)
	}
}

func TestDrainAllocatesNothing(t *testing.T) {
	r := newRing(t, 1<<16, shm.Limits{})
	payload := make([]byte, 5000)
	drain := func() {
		for range 10 {
			if err := r.writer.Write(1, payload); err != nil {
				t.Fatal(err)
			}
		}
		r.reader.Drain(func(shm.Message) bool { return true })
	}
	drain()
	if n := testing.AllocsPerRun(100, drain); n != 0 {
		t.Errorf("%v allocations for ten messages", n)
	}
}

func TestStimulus(t *testing.T) {
	s := shm.StimulusEvent{ElapsedMS: 1234, StepIndex: 3, OpCount: 5, OpKinds: 0xa5, CgroupCount: 4,
		WorkerCount: 16, TotalIterations: 99999}
	p := s.Encode()
	want := []byte{0xd2, 4, 0, 0, 3, 0, 5, 0, 0xa5, 0, 0, 0, 4, 0, 16, 0, 0x9f, 0x86, 1, 0, 0, 0, 0, 0}
	if !bytes.Equal(p[:], want) {
		t.Errorf("%x", p)
	}
	for _, payload := range [][]byte{p[:], append(p[:], 1, 2, 3)} {
		if got, err := shm.DecodeStimulus(payload); err != nil || got != s {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for _, n := range []int{0, 19, 23} {
		if _, err := shm.DecodeStimulus(p[:n]); !errors.Is(err, shm.ErrPayload) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestCodes(t *testing.T) {
	for _, code := range []int32{0, 3, -1, 1 << 30} {
		p := shm.EncodeCode(code)
		if got, err := shm.DecodeCode(p[:]); err != nil || got != code {
			t.Errorf("%d: %d, %v", code, got, err)
		}
	}
	for _, n := range []int{0, 3, 5} {
		if _, err := shm.DecodeCode(make([]byte, n)); !errors.Is(err, shm.ErrPayload) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if got := shm.CrashText([]byte("a\xffb")); got != "a\ufffdb" {
		t.Errorf("%q", got)
	}
}

func TestParams(t *testing.T) {
	p := shm.Params{Base: 0x1_7f00_0000, Size: 16 << 20}
	if got := p.String(); got != "KTSTR_SHM_BASE=0x17f000000 KTSTR_SHM_SIZE=0x1000000" {
		t.Error(got)
	}
	for cmdline, want := range map[string]shm.Params{
		p.String():                              p,
		"quiet " + p.String() + " x=1":          p,
		"KTSTR_SHM_SIZE=2000 KTSTR_SHM_BASE=1f": {Base: 0x1f, Size: 0x2000},
		"KTSTR_SHM_BASE=0X10 KTSTR_SHM_SIZE=0x20 KTSTR_SHM_BASE=0x30":      {Base: 0x10, Size: 0x20},
		"\tKTSTR_SHM_BASE=0x1\nKTSTR_SHM_SIZE=0xffffffffffffffff XKTSTR=1": {Base: 1, Size: ^uint64(0)},
	} {
		if got, err := shm.ParseParams(cmdline); err != nil || got != want {
			t.Errorf("%q: %v, %v", cmdline, got, err)
		}
	}
	for _, cmdline := range []string{"", "KTSTR_SHM_BASE=0x1", "KTSTR_SHM_SIZE=0x1", "KTSTR_SHM_BASE= KTSTR_SHM_SIZE=1",
		"KTSTR_SHM_BASE=0xg KTSTR_SHM_SIZE=1", "KTSTR_SHM_BASE=0x10000000000000000 KTSTR_SHM_SIZE=1", "XKTSTR_SHM_BASE=1 " +
			"KTSTR_SHM_SIZE=1"} {
		if got, err := shm.ParseParams(cmdline); !errors.Is(err, shm.ErrParams) {
			t.Errorf("%q: %v, %v", cmdline, got, err)
		}
	}
}
