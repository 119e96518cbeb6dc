package run

import (
	"bytes"
	"errors"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// RingImage is the ring's region as it was when nothing of the guest ran any more.
type RingImage struct {
	Size   uint64 // bytes
	Chunks []RingChunk
}

// RingChunk is a part of a RingImage that is not all zeros.
type RingChunk struct {
	Offset uint64
	Data   []byte
}

const ringChunk = 64 << 10 // bytes

// keepRing copies the ring, and adds to err if that fails.
func (r *run) keepRing(err error) (*RingImage, error) {
	ring := vm.Span{Base: r.result.RingBase, Size: r.result.RingSize}
	image, copyErr := copyRing(r.machine.Memory(), ring)
	return image, errors.Join(err, copyErr)
}

// copyRing copies the ring's region out of the guest's memory, but for what was never written.
func copyRing(mem *guestmem.Memory, region vm.Span) (*RingImage, error) {
	image := &RingImage{Size: region.Size}
	zeros, chunk := make([]byte, ringChunk), make([]byte, ringChunk)
	for at := uint64(0); at < region.Size; at += ringChunk {
		b := chunk[:min(ringChunk, region.Size-at)]
		if err := mem.Read(b, region.Base+guestmem.Addr(at)); err != nil {
			return nil, err
		}
		if !bytes.Equal(b, zeros[:len(b)]) {
			image.Chunks = append(image.Chunks, RingChunk{at, bytes.Clone(b)})
		}
	}
	return image, nil
}
