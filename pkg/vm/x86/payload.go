package x86

import (
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/packed"
)

// ErrPayload means that the host can't unpack what a bzImage carries, for all that the image may be
// sound: a guest that enters the image unpacks it by itself.
var ErrPayload = packed.ErrPayload

// Where the setup header says what the image carries: Linux boot protocol 2.08.
const (
	offPayloadOffset = 0x248 // u32, from the start of the protected-mode kernel
	offPayloadLength = 0x24c // u32
)

// payload returns a reader of the ELF file that the bzImage in file unpacks, as it is unpacked. head
// is the image's first bytes, setupEnd or more of them. It fails with ErrPayload for a payload that is
// packed in a way not known here, and with vm.ErrKernel for a broken one.
//
// The reader ends after the bytes that the image says, which are no more than its init_size: that much
// memory the kernel needs when it unpacks itself, packed and unpacked. Nothing may be read after Close.
func payload(file io.ReaderAt, head []byte) (io.ReadCloser, error) {
	if len(head) < setupEnd {
		return nil, fmt.Errorf("%w: a bzImage of %d bytes; it is cut short", vm.ErrKernel, len(head))
	}
	sectors := int64(head[offSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*sector + int64(le.Uint32(head[offPayloadOffset:]))
	length := int64(le.Uint32(head[offPayloadLength:]))
	return packed.Open(file, start, length, le.Uint32(head[offInitSize:]))
}
