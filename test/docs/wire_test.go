package docs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

const wirePage = "docs/wire-protocol.md"

// wireTable is the first table below a heading of the page that has so many columns.
func wireTable(t *testing.T, heading string, columns int) [][]string {
	t.Helper()
	for _, rows := range tables(section(t, page(t, wirePage), heading)) {
		if len(rows[0]) == columns {
			return rows
		}
	}
	t.Fatalf("%s has no table of %d columns below %q", wirePage, columns, heading)
	return nil
}

// parse reads the first number in a cell.
func parse(t *testing.T, cell string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(regexp.MustCompile(`0x[0-9a-f]+|\d+`).FindString(cell), 0, 64)
	if err != nil {
		t.Fatalf("%q: %v", cell, err)
	}
	return v
}

// layout checks that a table of fields is what the fields' bytes are: each has its value at its place, and none lies
// over another or leaves a gap.
func layout(t *testing.T, rows [][]string, b []byte, values map[string]uint64) {
	t.Helper()
	end := uint64(0)
	for _, row := range rows {
		at, size, field := parse(t, row[0]), parse(t, row[1]), row[2]
		if at != end || at+size > uint64(len(b)) {
			t.Fatalf("%s is at %d, %d bytes; the one before it ends at %d, all of them at %d", field, at, size, end, len(b))
		}
		end = at + size
		var word [8]byte
		copy(word[:], b[at:end])
		want, found := values[field]
		if got := binary.LittleEndian.Uint64(word[:]); !found || got != want {
			t.Errorf("%s at %d is 0x%x, want 0x%x (known: %v)", field, at, got, want, found)
		}
		delete(values, field)
	}
	if len(values) > 0 || end != uint64(len(b)) {
		t.Errorf("the table ends at %d of %d bytes, and lacks %v", end, len(b), values)
	}
}

func TestWireHeader(t *testing.T) {
	h := shm.Header{Magic: shm.Magic, Version: shm.Version, Capacity: 0x11223344, Control: [4]byte{0xa1, 0xa2, 0xa3, 0xa4},
		WritePtr: 0x1112131415161718, ReadPtr: 0x2122232425262728, Drops: 0x3132333435363738}
	b := h.Encode()
	rows := wireTable(t, "## The region", 5)
	layout(t, rows, b[:], map[string]uint64{"magic": shm.Magic, "version": shm.Version, "capacity": 0x11223344,
		"dump": 0xa1, "stall": 0xa2, "slot 0": 0xa3, "slot 1": 0xa4, "write_ptr": h.WritePtr, "read_ptr": h.ReadPtr,
		"drops": h.Drops})
	for i, want := range []string{fmt.Sprintf("u32 0x%x", uint32(shm.Magic)), fmt.Sprintf("u32 %d", shm.Version)} {
		if !strings.HasPrefix(rows[i][4], want) {
			t.Errorf("%s: %q, want %q", rows[i][2], rows[i][4], want)
		}
	}
}

func TestWireLimits(t *testing.T) {
	want := []uint64{shm.HeaderSize, shm.MaxCapacity, shm.HeaderSize + shm.MessageHeaderSize, shm.MessageHeaderSize,
		shm.MessageHeaderSize}
	for i, row := range wireTable(t, "## The region", 2) {
		if got := parse(t, row[1]); got != want[i] {
			t.Errorf("%s: %d, want %d", row[0], got, want[i])
		}
	}
	_, region := newRing(t, shm.HeaderSize+shm.MessageHeaderSize-1)
	if err := shm.Init(region); err == nil {
		t.Error("a region that is a byte shorter is taken for a ring")
	}
}

// newRing is memory for a ring of size bytes, and its region.
func newRing(t *testing.T, size uint64) ([]byte, *guestmem.Window) {
	t.Helper()
	mem := make([]byte, size)
	memory, err := guestmem.New(guestmem.Region{Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	region, err := memory.Window(0, size)
	if err != nil {
		t.Fatal(err)
	}
	return mem, region
}

func TestWireMessage(t *testing.T) {
	mem, region := newRing(t, 4096)
	if err := shm.Init(region); err != nil {
		t.Fatal(err)
	}
	w, err := shm.NewWriter(region)
	if err != nil {
		t.Fatal(err)
	}
	payload := "123456789"
	if err := w.Write(shm.Crash, []byte(payload)); err != nil {
		t.Fatal(err)
	}
	header := mem[shm.HeaderSize : shm.HeaderSize+shm.MessageHeaderSize]
	layout(t, wireTable(t, "## A message", 4), header, map[string]uint64{"type": uint64(shm.Crash),
		"length": uint64(len(payload)), "crc": uint64(crc32.ChecksumIEEE([]byte(payload))), "zero": 0})
	if got := string(mem[shm.HeaderSize+shm.MessageHeaderSize:][:len(payload)]); got != payload {
		t.Errorf("the payload is %q", got)
	}
	for _, n := range []uint32{crc32.ChecksumIEEE([]byte(payload)), crc32.IEEE} {
		if want := fmt.Sprintf("0x%x", n); !strings.Contains(page(t, wirePage), want) {
			t.Errorf("%s does not have %s: the CRC of %s, or its polynomial", wirePage, want, payload)
		}
	}
}

// A call of the reader's reads as much as the page says.
func TestWireReading(t *testing.T) {
	text := section(t, page(t, wirePage), "## Reading")
	for says, size := range map[string]uint64{
		`after (\d+)\s+messages`: shm.MessageHeaderSize,
		`read (\d+)\s+MiB`:       1 << 20,
	} {
		m := regexp.MustCompile(says).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%s does not have %q", wirePage, says)
		}
		n := parse(t, m[1]) // messages of this size
		_, region := newRing(t, shm.HeaderSize+(n+1)*size)
		if err := shm.Init(region); err != nil {
			t.Fatal(err)
		}
		w, err := shm.NewWriter(region)
		if err != nil {
			t.Fatal(err)
		}
		for range n + 1 {
			if err := w.Write(shm.RawOutput, make([]byte, size-shm.MessageHeaderSize)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := shm.NewReader(region, shm.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if d := r.Drain(func(shm.Message) bool { return true }); uint64(d.Messages) != n || !d.More {
			t.Errorf("%q: %d messages of %d bytes were read in one go, want %d", says, d.Messages, size, n)
		}
	}
}

func TestWireTypes(t *testing.T) {
	types := shm.Types()
	rows := wireTable(t, "## A message", 3)
	if len(rows) != len(types) {
		t.Fatalf("%d types, want %d", len(rows), len(types))
	}
	for _, row := range rows {
		typ := shm.Type(parse(t, row[1]))
		if typ.String() != row[0] || !slices.Contains(types, typ) {
			t.Errorf("%s is %s, which is %v", row[0], row[1], typ)
		}
	}
}

func TestWirePayloads(t *testing.T) {
	stimulus := shm.StimulusEvent{ElapsedMS: 1 << 31, StepIndex: 2, OpCount: 3, OpKinds: 1 << 30, CgroupCount: 5,
		WorkerCount: 6, TotalIterations: 1 << 60}.Encode()
	layout(t, wireTable(t, "### STIM", 4), stimulus[:], map[string]uint64{"elapsed_ms": 1 << 31, "step_index": 2,
		"op_count": 3, "op_kinds": 1 << 30, "cgroup_count": 5, "worker_count": 6, "total_iterations": 1 << 60})

	state := shm.SchedulerState{Time: 1 << 60, Noticed: 1 << 61, Phase: shm.SchedulerLeft, EnableSeq: 3, HotplugSeq: 4,
		Rejected: 5, SwitchAll: true, PID: 7, Ops: "fifo", Reason: "a reason"}.Encode()
	text := "fifo" + "a reason"
	fixed, tail := state[:len(state)-len(text)], state[len(state)-len(text):]
	layout(t, wireTable(t, "### SXST", 4), fixed, map[string]uint64{"time": 1 << 60, "noticed": 1 << 61, "enable_seq": 3,
		"hotplug_seq": 4, "rejected": 5, "pid": 7, "phase": uint64(shm.SchedulerLeft), "switch_all": 1, "name length": 4,
		"reason length": 8})
	if string(tail) != text {
		t.Errorf("behind the fields of SXST are %q, want %q", tail, text)
	}
	phases := wireTable(t, "### SXST", 2)
	for i, row := range phases {
		if p := shm.SchedulerPhase(i + 1); parse(t, row[0]) != uint64(p) || row[1] != p.String() {
			t.Errorf("phase %s is %s, want %d, %v", row[0], row[1], p, p)
		}
	}
	if last := shm.SchedulerPhase(len(phases)); last != shm.SchedulerLeft {
		t.Errorf("the last phase is %v", last)
	}
	fields := section(t, page(t, wirePage), "### SXST")
	for _, limit := range []int{shm.MaxOpsName, shm.MaxSchedulerReason, len(fixed)} {
		if !strings.Contains(fields, strconv.Itoa(limit)) {
			t.Errorf("SXST does not say %d", limit)
		}
	}

	dump := shm.DumpPiece{Number: 7, Omitted: 8, Text: []byte("a line\n")}.Encode()
	layout(t, wireTable(t, "### SXDP", 4), dump[:len(dump)-len("a line\n")], map[string]uint64{"number": 7, "omitted": 8})
	if !strings.Contains(section(t, page(t, wirePage), "### SXDP"), strconv.Itoa(shm.MaxDumpPiece)) {
		t.Errorf("SXDP does not say %d", shm.MaxDumpPiece)
	}
}

func TestWireControl(t *testing.T) {
	for _, row := range wireTable(t, "## Control bytes", 6) {
		at, value := parse(t, row[1]), byte(parse(t, row[3]))
		mem, region := newRing(t, 4096)
		if err := shm.Init(region); err != nil {
			t.Fatal(err)
		}
		control, err := shm.NewControl(region)
		if err != nil {
			t.Fatal(err)
		}
		switch row[0] {
		case "dump":
			control.RequestDump()
		case "stall":
			control.RequestStall()
		case "slot 0":
			err = control.Signal(shm.SlotHost, shm.SignalShutdown)
		case "slot 1":
			err = control.Signal(shm.SlotGuest, shm.SignalProbesReady)
		default:
			t.Errorf("%q is no control byte", row[0])
		}
		if err != nil || mem[at] != value {
			t.Errorf("%s: 0x%x at %d (%v), want 0x%x", row[0], mem[at], at, err, value)
		}
		for i, b := range mem[12:16] {
			if uint64(i)+12 != at && b != 0 {
				t.Errorf("%s changed the byte at %d", row[0], i+12)
			}
		}
	}
}

func TestWireBreaches(t *testing.T) {
	var want []string
	for _, kind := range shm.FaultKinds() {
		want = append(want, kind.String())
	}
	want = append(want, monitor.BadPayload)
	var got []string
	for _, row := range wireTable(t, "## Breaches", 3) {
		got = append(got, row[0])
	}
	if !slices.Equal(got, want) {
		t.Errorf("the kinds are %q, want %q", got, want)
	}
	if text := section(t, page(t, wirePage), "## Breaches"); !strings.Contains(text, shm.BadCapacity.String()) ||
		!strings.Contains(text, string(run.Corrupt)) {
		t.Errorf("%v or %v is missing", shm.BadCapacity, run.Corrupt)
	}
}

func TestWireParameters(t *testing.T) {
	line := regexp.MustCompile(`(?m)^    (KTSTR_SHM_BASE=.*)$`).FindStringSubmatch(page(t, wirePage))
	if line == nil {
		t.Fatal("the parameters are not there")
	}
	p, err := shm.ParseParams(line[1])
	if err != nil || p.String() != line[1] || p.Base%4096 != 0 {
		t.Errorf("%q is %v (%v)", line[1], p, err)
	}
	bell := section(t, page(t, wirePage), "### The doorbell")
	if want := fmt.Sprintf("0x%x", x86.Doorbell); !strings.Contains(bell, want) {
		t.Errorf("the doorbell's port is %s", want)
	}
}
