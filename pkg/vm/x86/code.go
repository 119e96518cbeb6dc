package x86

import (
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Code is machine code that is loaded as a kernel at 1 MiB, for guests of a few instructions.
type Code []byte

// Board implements vm.Loader.
func (Code) Board() vm.Board { return Board{} }

// Load implements vm.Loader.
func (c Code) Load(ram *guestmem.Memory) (vm.Kernel, error) {
	return vm.Kernel{Entry: kernelFloor, End: kernelFloor + guestmem.Addr(len(c))}, ram.Write(c, kernelFloor)
}
