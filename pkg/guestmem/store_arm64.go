package guestmem

import (
	"encoding/binary"
	"unsafe"
)

// store copies src to guest memory at dst, of the same length. A guest's process may have it as Device memory, where
// any access but a naturally aligned one of at most 8 bytes is a fault: Arm Architecture Reference Manual, B2.10.2.
// Go's copy makes wider ones, and unaligned ones at its ends.
func store(dst, src []byte) {
	for len(dst) > 0 && uintptr(unsafe.Pointer(&dst[0]))%8 != 0 {
		dst[0] = src[0]
		dst, src = dst[1:], src[1:]
	}
	for len(dst) >= 8 {
		*(*uint64)(unsafe.Pointer(&dst[0])) = binary.LittleEndian.Uint64(src)
		dst, src = dst[8:], src[8:]
	}
	for i := range dst {
		dst[i] = src[i]
	}
}
