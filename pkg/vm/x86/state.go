package x86

import "github.com/ktstr/ktstr-vmm/pkg/vm"

// Bits of the control registers: SDM volume 3, section 2.5 and 2.2.1.
const (
	cr0PE, cr0MP, cr0ET, cr0NE, cr0WP, cr0AM, cr0PG = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 18, 1 << 31
	cr4PAE, cr4OSFXSR, cr4OSXMMEXCPT                = 1 << 5, 1 << 9, 1 << 10
	eferLME, eferLMA                                = 1 << 8, 1 << 10
)

// MSR is a model-specific register and its value.
type MSR struct {
	Index uint32
	Value uint64
}

// MSRs returns the registers that a PC's firmware would have set, on every processor: SDM volume 4, table 2-2, and
// volume 3, section 12.11.2.1.
func MSRs() []MSR {
	return []MSR{
		{Index: 0x1a0, Value: 1}, // IA32_MISC_ENABLE: fast strings
		// IA32_MTRR_DEF_TYPE: MTRRs on, write-back; else Linux maps the reserved memory uncached
		{Index: 0x2ff, Value: 0xc06},
	}
}

// State is the state of the processor that enters a kernel: Linux boot protocol, section "64-bit boot protocol". The
// other processors wait for INIT and SIPI. Both selectors are flat segments of ring 0, CS one of 64-bit code. There is
// no IDT, and everything not listed is zero.
type State struct {
	RIP, RSI, RSP, RFLAGS uint64
	CR0, CR3, CR4, EFER   uint64
	GDTBase               uint64
	GDTLimit              uint16
	CS, DS                uint16 // DS is also that of ES, FS, GS and SS
}

// EntryState returns the state for an entry.
func EntryState(e vm.Entry) State {
	return State{
		RIP:      uint64(e.PC),
		RSI:      uint64(e.Arg),
		RSP:      stackTop,
		RFLAGS:   2, // the bit that is always set
		CR0:      cr0PE | cr0MP | cr0ET | cr0NE | cr0WP | cr0AM | cr0PG,
		CR3:      pml4Addr,
		CR4:      cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT,
		EFER:     eferLME | eferLMA,
		GDTBase:  gdtAddr,
		GDTLimit: gdtSize - 1,
		CS:       bootCS,
		DS:       bootDS,
	}
}
