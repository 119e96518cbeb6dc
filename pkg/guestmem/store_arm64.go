package guestmem

import (
	"encoding/binary"
	"unsafe"
)

// store copies src to guest memory at dst, of the same length. A guest's process may have it as Device memory, where
// any access but a naturally aligned one of at most 8 bytes is a fault: Arm Architecture Reference Manual, B2.10.2.
// Go's copy makes wider ones, and unaligned ones at its ends.
func store(dst, src []byte) {
	const word, block = 8, 64
	for len(dst) > 0 && uintptr(unsafe.Pointer(&dst[0]))%word != 0 {
		dst[0] = src[0]
		dst, src = dst[1:], src[1:]
	}
	for len(dst) >= block && len(src) >= block { // an emulator takes its time for each instruction
		d := (*[block / word]uint64)(unsafe.Pointer(&dst[0]))
		d[0] = binary.LittleEndian.Uint64(src)
		d[1] = binary.LittleEndian.Uint64(src[8:])
		d[2] = binary.LittleEndian.Uint64(src[16:])
		d[3] = binary.LittleEndian.Uint64(src[24:])
		d[4] = binary.LittleEndian.Uint64(src[32:])
		d[5] = binary.LittleEndian.Uint64(src[40:])
		d[6] = binary.LittleEndian.Uint64(src[48:])
		d[7] = binary.LittleEndian.Uint64(src[56:])
		dst, src = dst[block:], src[block:]
	}
	for len(dst) >= word {
		*(*uint64)(unsafe.Pointer(&dst[0])) = binary.LittleEndian.Uint64(src)
		dst, src = dst[word:], src[word:]
	}
	for i := range dst {
		dst[i] = src[i]
	}
}
