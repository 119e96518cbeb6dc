package arm64

import "github.com/ktstr/ktstr-vmm/pkg/vm"

// PSTATE at entry: Arm Architecture Reference Manual, C5.2.19 SPSR_EL1.
const (
	pstateEL1h = 0x5   // EL1, with a stack pointer of its own
	pstateDAIF = 0x3c0 // debug exceptions, SError, IRQ and FIQ masked
)

// State is the state of the processor that enters a kernel: Linux, Documentation/arch/arm64/booting.rst, "Call the
// kernel image". MMU and caches are off, as they are after a reset; the other processors are off.
type State struct {
	X      [4]uint64 // x0 to x3
	PC     uint64
	PSTATE uint64
}

// EntryState is the state for an entry.
func EntryState(e vm.Entry) State {
	return State{X: [4]uint64{uint64(e.Arg)}, PC: uint64(e.PC), PSTATE: pstateEL1h | pstateDAIF}
}
