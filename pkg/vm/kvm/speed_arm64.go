package kvm

import (
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
)

// countedLoop is a guest that counts down at EL1, two instructions a round, and resets the machine.
func countedLoop(rounds uint32) vm.Loader {
	const low16 = 1<<16 - 1
	return arm64.Code{
		0x52800001 | rounds&low16<<5, // mov w1, rounds
		0x72a00001 | rounds>>16<<5,   // movk w1, rounds >> 16, lsl 16
		0x71000421,                   // subs w1, w1, 1
		0x54ffffe1,                   // b.ne to the subs
		0x52800120,                   // mov w0, 9
		0x72b08000,                   // movk w0, 0x8400, lsl 16: PSCI SYSTEM_RESET
		0xd4000002,                   // hvc 0
		0x14000000,                   // b to itself
	}
}
