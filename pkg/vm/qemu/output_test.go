package qemu

import (
	"strings"
	"testing"
)

// A triple fault is found wherever the log's pieces end, and a log without end is not kept.
func TestLogWatch(t *testing.T) {
	const text = "CPU Reset (CPU 0)\nTriple fault\nCPU Reset (CPU 0)\n"
	for cut := range text {
		for _, rest := range []int{1, 5, len(text)} {
			w := &resetLog{}
			if _, err := w.Write([]byte(text[:cut])); err != nil {
				t.Fatal(err)
			}
			for left := text[cut:]; left != ""; left = left[min(rest, len(left)):] {
				if _, err := w.Write([]byte(left[:min(rest, len(left))])); err != nil {
					t.Fatal(err)
				}
			}
			if !w.tripleFault {
				t.Errorf("not found when cut at %d and every %d", cut, rest)
			}
		}
	}
	w := &resetLog{}
	for range 1000 {
		if _, err := w.Write([]byte(strings.Repeat("Triple faul\n", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	if w.tripleFault || cap(w.rest) > 64<<10 {
		t.Errorf("found %t, %d bytes kept", w.tripleFault, cap(w.rest))
	}
}
