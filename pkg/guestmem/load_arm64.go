package guestmem

import (
	"encoding/binary"
	"unsafe"
)

// load copies guest memory at src to dst, of the same length, by the accesses that Device memory takes: see store.
func load(dst, src []byte) {
	const word, block = 8, 64
	for len(src) > 0 && uintptr(unsafe.Pointer(&src[0]))%word != 0 {
		dst[0] = src[0]
		dst, src = dst[1:], src[1:]
	}
	for len(src) >= block && len(dst) >= block { // an emulator takes its time for each instruction
		s := (*[block / word]uint64)(unsafe.Pointer(&src[0]))
		binary.LittleEndian.PutUint64(dst, s[0])
		binary.LittleEndian.PutUint64(dst[8:], s[1])
		binary.LittleEndian.PutUint64(dst[16:], s[2])
		binary.LittleEndian.PutUint64(dst[24:], s[3])
		binary.LittleEndian.PutUint64(dst[32:], s[4])
		binary.LittleEndian.PutUint64(dst[40:], s[5])
		binary.LittleEndian.PutUint64(dst[48:], s[6])
		binary.LittleEndian.PutUint64(dst[56:], s[7])
		dst, src = dst[block:], src[block:]
	}
	for len(src) >= word {
		binary.LittleEndian.PutUint64(dst, *(*uint64)(unsafe.Pointer(&src[0])))
		dst, src = dst[word:], src[word:]
	}
	for i := range src {
		dst[i] = src[i]
	}
}
