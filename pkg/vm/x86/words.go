package x86

import "encoding/binary"

// More of the setup header's fields: Linux boot protocol, "The real-mode kernel header".
const (
	offSetupSects = 0x1f1 // u8, sectors of real-mode code behind the first; 0 means 4
	offInitSize   = 0x260 // u32, bytes that the kernel uses from its start until it knows its memory map
	setupEnd      = 0x264 // the least that is read

	sector = 512

	// kernelFloor is the lowest address that a kernel may be loaded at: boot data lies below.
	kernelFloor = 1 << 20
)

var le = binary.LittleEndian
