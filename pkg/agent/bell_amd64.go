package agent

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// doorbell is the port that the host listens to: Doorbell of pkg/vm/x86.
const doorbell = 0xe9

// ringBell rings the host's doorbell. Whoever hears it sees what was stored before, without more: stores are seen
// in the order they were made, and OUT waits until all before it are. SDM volume 1, "Ordering I/O", and volume 3,
// "Strengthening or Weakening the Memory-Ordering Model".
//
// A kernel need not let even root use a port: one that is locked down, or built without ioperm. Then the host finds
// what there is when it next polls.
func ringBell() {
	// The permission is a thread's. It is given back, for the scheduler under test switches between threads, which
	// takes longer where one has ports: Linux, arch/x86/kernel/process.c, switch_to_bitmap.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Ioperm(doorbell, 1, 1) == nil {
		out(doorbell, 0)
		_ = unix.Ioperm(doorbell, 1, 0)
	}
}

// out writes a byte to a port.
func out(port uint16, v uint8)
