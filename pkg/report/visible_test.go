package report_test

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/pkg/report"
)

// However text is cut into pieces, what is shown of it is the same, and harmless.
func TestVisibleInAnyPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"a", "\r", "\n", "\x1b", "ü", "€", "😀", "\xc3",
			"\xe2\x82", "\xff", "\u202e", "\x00"})).Draw(t, "text"), "")
		show := func(pieces ...string) string {
			var out bytes.Buffer
			v := report.NewVisible(&out)
			for _, p := range pieces {
				if n, err := v.Write([]byte(p)); err != nil || n != len(p) {
					t.Fatal(n, err)
				}
			}
			if err := v.Flush(); err != nil {
				t.Fatal(err)
			}
			return out.String()
		}
		whole, cut := show(text), show(splitBytes(text)...)
		// A run of bytes that are no text is one mark in a whole, and may be several in pieces.
		if strings.ReplaceAll(whole, "\ufffd", "") != strings.ReplaceAll(cut, "\ufffd", "") ||
			strings.Contains(whole, "\ufffd") != strings.Contains(cut, "\ufffd") {
			t.Fatalf("%q: %q in one piece, %q in many", text, whole, cut)
		}
		if strings.ContainsAny(cut, "\x1b\x00\r\u202e") {
			t.Fatalf("%q", cut)
		}
	})
}

func splitBytes(s string) (pieces []string) {
	for i := range len(s) {
		pieces = append(pieces, s[i:i+1])
	}
	return pieces
}
