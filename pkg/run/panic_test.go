package run

import (
	"strings"
	"testing"
)

func TestKernelPanic(t *testing.T) {
	for console, want := range map[string]string{
		"":                "",
		"all is well\r\n": "",
		"echo Kernel panic - not syncing is only text\n": "",
		"boot\r\n[    1.234567] Kernel panic - not syncing: sysrq triggered crash\r\n[    1.3] more\r": "[    " +
			"1.234567] Kernel panic - not syncing: sysrq triggered crash\n[    1.3] more",
		"x\nBUG: kernel NULL pointer dereference\nCall Trace:\nKernel panic - not syncing: Fatal exception\n": "BUG: " +
			"kernel NULL pointer dereference\nCall Trace:\nKernel panic - not syncing: Fatal exception",
	} {
		if got := kernelPanic([]byte(console)); got != want {
			t.Errorf("%q: %q, want %q", console, got, want)
		}
	}
}

func TestPanicWatch(t *testing.T) {
	for console, want := range map[string]bool{
		"all is well\nKernel panic - not sync": false,
		"echo Kernel panic - not syncing\n":    false,
		strings.Repeat("x", 1<<20) + "\n[    1.234567] Kernel panic - not syncing: sysrq triggered crash\r\n": true,
		"Kernel panic - not syncing: a\nKernel panic - not syncing: b\n":                                      true,
	} {
		w := newPanicWatch()
		for _, b := range []byte(console) {
			if n, err := w.Write([]byte{b}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		select {
		case <-w.seen:
			if !want {
				t.Errorf("%.80q: seen", console)
			}
		default:
			if want {
				t.Errorf("%.80q: not seen", console)
			}
		}
	}
}
