//go:build !amd64

package qemu

import "golang.org/x/sys/unix"

// hostTicks reads the host's counter that the emulator shows its guests as their TSC: where the host's
// processor has none that QEMU knows of, its monotonic clock in nanoseconds. QEMU, include/qemu/timer.h.
func hostTicks() uint64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // fails for no clock that there is
	return uint64(t.Nano())
}
