package qemu

// hostTicks reads the host's counter that the emulator shows its guests as their TSC.
func hostTicks() uint64
