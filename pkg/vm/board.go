package vm

import "github.com/ktstr/ktstr-vmm/pkg/guestmem"

// Board is what a guest sees: memory map, boot protocol, tables, devices. It is a value, the same on every host.
type Board interface {
	// Arch returns the name of the guest's architecture for reports.
	Arch() string
	// MaxCPUs returns the largest number of processors.
	MaxCPUs() int
	// Layout lays out memory bytes of RAM, of which the top reserved bytes are the reserved part; for what 0 means, see
	// Config.
	Layout(memory, reserved uint64) (Layout, error)
	// Load loads a kernel and what it boots with into ram, which is the machine's without the reserved part, and
	// returns how to enter it. It fails with ErrKernel, ErrCmdline or ErrSetup.
	Load(ram *guestmem.Memory, b Boot) (Entry, error)
}

// Boot describes what a board puts into memory.
type Boot struct {
	Config
	// Emulated reports whether the guest's instructions are translated, and so run slower than the host's.
	Emulated bool
	// CounterKHz returns the frequency of the guest's time-stamp counter if the machine itself does not tell it to the
	// guest, else 0. It may take some milliseconds, so it is called late.
	CounterKHz func() (uint32, error)
}

// Entry says how the first processor enters a kernel. The board knows the rest of the state that its boot protocol
// needs.
type Entry struct {
	PC  guestmem.Addr // the address of the first instruction
	Arg guestmem.Addr // the address that the boot protocol passes: of boot_params, of a device tree
}
