package arm64

import (
	"encoding/binary"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Code is machine code as a kernel, in instructions: for guests of a few of them.
type Code []uint32

// Board implements vm.Loader.
func (Code) Board() vm.Board { return Board{} }

// Load implements vm.Loader.
func (c Code) Load(ram *guestmem.Memory) (vm.Kernel, error) {
	var b []byte
	for _, instruction := range c {
		b = binary.LittleEndian.AppendUint32(b, instruction)
	}
	return vm.Kernel{Entry: kernelBase, End: kernelBase + guestmem.Addr(len(b))}, ram.Write(b, kernelBase)
}
