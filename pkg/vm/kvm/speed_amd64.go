package kvm

import (
	"encoding/binary"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// countedLoop is a guest that counts down in ring 0, two instructions a round, and resets the machine.
func countedLoop(rounds uint32) vm.Loader {
	code := x86.Code{
		0xb9, 0, 0, 0, 0, // mov ecx, rounds
		0xff, 0xc9, // dec ecx
		0x75, 0xfc, // jnz to the dec
		0xb0, 0xfe, // mov al, 0xfe
		0xe6, 0x64, // out 0x64, al
		0xeb, 0xfe, // jmp to itself
	}
	binary.LittleEndian.PutUint32(code[1:], rounds)
	return code
}
