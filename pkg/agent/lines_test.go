package agent

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// A line's bound holds however its bytes come.
func TestLineBound(t *testing.T) {
	for _, step := range []int{1 << 20, 1000, maxLine} {
		var got, tooLong []int
		l := &lines{
			line:    func(b []byte) { got = append(got, len(b)) },
			tooLong: func(b []byte) { tooLong = append(tooLong, len(b)) },
		}
		text := strings.Repeat("x", maxLine) + "\n" + strings.Repeat("y", maxLine+1) + "\nz"
		for len(text) > 0 {
			n := min(step, len(text))
			if _, err := l.Write([]byte(text[:n])); err != nil {
				t.Fatal(err)
			}
			text = text[n:]
		}
		l.end()
		if len(got) != 2 || got[0] != maxLine || got[1] != 1 || len(tooLong) != 1 || tooLong[0] != maxLine {
			t.Errorf("in steps of %d: lines of %d, too long %d", step, got, tooLong)
		}
	}
}

// FuzzLines holds the lines of the message file, and what is sent for them, against a plainer reader
// of the same text, wherever it is cut.
func FuzzLines(f *testing.F) {
	for _, text := range []string{
		"", "TEST {\"passed\":false}\n\nPMET {}\nRAWO [1]\nSTIM {\"step_index\":7}\nEXIT 0\nRAWO no end",
		"\x00end\nTEST 1\r\n", "TEST", "TEST \n \n\r\r\n", "STIM {}\nSTIM x\n",
	} {
		f.Add([]byte(text), uint16(3))
	}
	f.Fuzz(func(t *testing.T, text []byte, cut uint16) {
		var want, got []string
		for line := range bytes.SplitSeq(text, []byte{'\n'}) {
			if len(bytes.TrimSpace(line)) > 0 && len(line) <= maxLine {
				want = append(want, string(bytes.TrimSuffix(line, []byte{'\r'})))
			}
		}
		d := &doors{
			complain: func(error) {},
			send: func(_ context.Context, typ shm.Type, payload []byte) error {
				switch {
				case typ == shm.TestResult, typ == shm.PayloadMetrics, typ == shm.RawOutput:
				case typ == shm.Stimulus && len(payload) == shm.StimulusSize:
				default:
					t.Errorf("a line became %v %q", typ, payload)
				}
				return nil
			},
		}
		l := &lines{tooLong: func([]byte) {}, line: func(b []byte) {
			got = append(got, string(b))
			d.line(b)
		}}
		at := min(int(cut), len(text))
		for _, part := range [][]byte{text[:at], text[at:]} {
			if n, err := l.Write(part); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
		l.end()
		if strings.Join(want, "\n") != strings.Join(got, "\n") {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
