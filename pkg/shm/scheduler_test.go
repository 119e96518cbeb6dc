package shm_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

var update = flag.Bool("update", false, "write testdata/extensions")

// extension is one of our own types' payloads, in testdata/extensions/vectors.json.
type extension struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Payload string `json:"payload"` // hex
	Decoded any    `json:"decoded"`
}

// decodeExtension decodes a payload of one of our own types.
func decodeExtension(typ shm.Type, p []byte) (any, error) {
	switch typ {
	case shm.SchedulerChange:
		return shm.DecodeSchedulerState(p)
	case shm.SchedulerDump:
		return shm.DecodeDumpPiece(p)
	default:
		return shm.DecodeOutputPiece(p)
	}
}

// The payloads of our own types, as other programs may write and read them. -update writes the file.
func TestExtensionVectors(t *testing.T) {
	var got []extension
	for _, v := range []struct {
		name    string
		typ     shm.Type
		payload interface{ Encode() []byte }
	}{
		{"loading", shm.SchedulerChange, shm.SchedulerState{
			Time: 1500 * time.Millisecond, Phase: shm.SchedulerLoading, PID: 56,
		}},
		{"enabled", shm.SchedulerChange, shm.SchedulerState{
			Time: 1600 * time.Millisecond, Phase: shm.SchedulerEnabled, EnableSeq: 1, HotplugSeq: 2, Rejected: 3,
			SwitchAll: true, PID: 56, Ops: "fifo",
		}},
		{"lost", shm.SchedulerChange, shm.SchedulerState{
			Time: 4020 * time.Millisecond, Noticed: 4 * time.Second, Phase: shm.SchedulerLost, EnableSeq: 1, PID: 56,
			Reason: "was disabled by the kernel (runnable task stall): zz[56] failed to run for 2.918s; its process lives",
		}},
		{"largest", shm.SchedulerChange, shm.SchedulerState{
			Time: math.MaxInt64, Noticed: math.MaxInt64, Phase: shm.SchedulerLeft, EnableSeq: math.MaxUint64,
			HotplugSeq: math.MaxUint64, Rejected: math.MaxUint64, PID: math.MinInt32,
			Ops: strings.Repeat("o", shm.MaxOpsName), Reason: strings.Repeat("r", shm.MaxSchedulerReason),
		}},
		{"dump", shm.SchedulerDump, shm.DumpPiece{
			Number: 1, Text: []byte("Debug dump triggered by SysRq-D\n\nCPU states\n"),
		}},
		{"cut dump", shm.SchedulerDump, shm.DumpPiece{Number: 2, Omitted: 4096}},
		{"output", shm.SchedulerOutput, shm.OutputPiece{Stream: shm.OutputStderr, Text: []byte("R0 !read_ok\n")}},
	} {
		p := v.payload.Encode()
		decoded, err := decodeExtension(v.typ, p)
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
		}
		got = append(got, extension{v.name, v.typ.String(), hex.EncodeToString(p), decoded})
	}
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "extensions", "vectors.json")
	if *update {
		if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != string(text)+"\n" {
		t.Errorf("%v; %s has not what is written now; run with -update if that is meant:\n%s", err, path, text)
	}
}

func TestBadExtensions(t *testing.T) {
	good := shm.SchedulerState{Phase: shm.SchedulerEnabled, Ops: "fifo", Reason: "r"}.Encode()
	set := func(at int, b ...byte) []byte {
		p := bytes.Clone(good)
		copy(p[at:], b)
		return p
	}
	for name, tc := range map[string]struct {
		typ shm.Type
		p   []byte
	}{
		"no state":        {shm.SchedulerChange, nil},
		"short state":     {shm.SchedulerChange, good[:49]},
		"early":           {shm.SchedulerChange, set(7, 0x80)},
		"noticed early":   {shm.SchedulerChange, set(15, 0x80)},
		"phase 0":         {shm.SchedulerChange, set(44, 0)},
		"unknown phase":   {shm.SchedulerChange, set(44, 10)},
		"switch_all 2":    {shm.SchedulerChange, set(45, 2)},
		"long name":       {shm.SchedulerChange, append(set(46, 129), make([]byte, 2000)...)},
		"long reason":     {shm.SchedulerChange, append(set(48, 1, 4), make([]byte, 2000)...)},
		"missing strings": {shm.SchedulerChange, good[:len(good)-1]},
		"short dump":      {shm.SchedulerDump, make([]byte, 7)},
		"dump 0":          {shm.SchedulerDump, make([]byte, 8)},
		"long dump":       {shm.SchedulerDump, append([]byte{1}, make([]byte, 8+shm.MaxDumpPiece)...)},
		"no output":       {shm.SchedulerOutput, nil},
		"stream 0":        {shm.SchedulerOutput, []byte{0}},
		"stream 3":        {shm.SchedulerOutput, []byte("\x03x")},
	} {
		if v, err := decodeExtension(tc.typ, tc.p); !errors.Is(err, shm.ErrPayload) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	if s, err := shm.DecodeSchedulerState(append(good, "later"...)); err != nil || s.Ops != "fifo" || s.Reason != "r" {
		t.Errorf("%+v, %v", s, err)
	}
}

// What is too long is cut, between two characters.
func TestLongExtensions(t *testing.T) {
	s := shm.SchedulerState{Phase: shm.SchedulerLost, Ops: strings.Repeat("é", 65), Reason: "x" + strings.Repeat("é", 512)}
	got, err := shm.DecodeSchedulerState(s.Encode())
	if err != nil || got.Ops != strings.Repeat("é", 64) || got.Reason != "x"+strings.Repeat("é", 511) {
		t.Errorf("%+v, %v", got, err)
	}
	d, err := shm.DecodeDumpPiece(shm.DumpPiece{Number: 1, Text: make([]byte, shm.MaxDumpPiece+1)}.Encode())
	if err != nil || len(d.Text) != shm.MaxDumpPiece {
		t.Errorf("%d bytes, %v", len(d.Text), err)
	}
}

// FuzzExtensions decodes any payload: it fails with ErrPayload, or what it gives is what the payload has.
func FuzzExtensions(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "extensions", "vectors.json"))
	if err != nil {
		f.Fatal(err)
	}
	var all []extension
	if err := json.Unmarshal(text, &all); err != nil {
		f.Fatal(err)
	}
	for _, v := range all {
		p, err := hex.DecodeString(v.Payload)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
		f.Add(p[:len(p)/2])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, typ := range []shm.Type{shm.SchedulerChange, shm.SchedulerDump, shm.SchedulerOutput} {
			v, err := decodeExtension(typ, p)
			if err != nil {
				if !errors.Is(err, shm.ErrPayload) {
					t.Error(err)
				}
				continue
			}
			again := v.(interface{ Encode() []byte }).Encode()
			if same := bytes.HasPrefix(p, again); !same && !strings.Contains(string(again), "\ufffd") {
				t.Errorf("%v %x is %+v, which is %x", typ, p, v, again)
			}
		}
	})
}
