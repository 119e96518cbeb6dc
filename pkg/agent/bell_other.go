//go:build !amd64

package agent

// ringBell does nothing: these guests have no port, and their host polls. Where the ring is Device memory, as on
// arm64, a DMB of the outer shareable domain (Arm ARM, "Data Memory Barrier") would have to stand between the last
// store to it and the one that rings.
func ringBell() {}
