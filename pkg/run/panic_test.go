package run

import "testing"

func TestKernelPanic(t *testing.T) {
	for console, want := range map[string]string{
		"":                "",
		"all is well\r\n": "",
		"echo Kernel panic - not syncing is only text\n":                                                      "",
		"boot\r\n[    1.234567] Kernel panic - not syncing: sysrq triggered crash\r\n[    1.3] more\r\n":      "[    1.234567] Kernel panic - not syncing: sysrq triggered crash\n[    1.3] more",
		"x\nBUG: kernel NULL pointer dereference\nCall Trace:\nKernel panic - not syncing: Fatal exception\n": "BUG: kernel NULL pointer dereference\nCall Trace:\nKernel panic - not syncing: Fatal exception",
	} {
		if got := kernelPanic([]byte(console)); got != want {
			t.Errorf("%q: %q, want %q", console, got, want)
		}
	}
}
