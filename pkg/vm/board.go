package vm

import "github.com/ktstr/ktstr-vmm/pkg/guestmem"

// Board is what a guest sees: memory map, boot protocol, tables, devices. It is a value, the same on every
// host.
type Board interface {
	// Arch is the name of the guest's architecture, as reports have it.
	Arch() string
	// MaxCPUs is how many processors it can have.
	MaxCPUs() int
	// Layout lays out memory bytes of RAM, of which the top reserved bytes are the reserved part; Config
	// says what 0 means.
	Layout(memory, reserved uint64) (Layout, error)
	// Load puts a kernel and what it boots with into ram, which is the machine's without the reserved
	// part, and says how it is entered. It fails with ErrKernel, ErrCmdline or ErrSetup.
	Load(ram *guestmem.Memory, b Boot) (Entry, error)
}

// Boot is what a board puts into memory.
type Boot struct {
	Config
	// Emulated says that the guest's instructions are translated, and run slower than the host's.
	Emulated bool
	// CounterKHz is the frequency of the guest's time-stamp counter where the machine itself does not
	// tell it to the guest; else 0. It may take some milliseconds, so it is asked late.
	CounterKHz func() (uint32, error)
}

// Entry is how the first processor enters a kernel. The board knows the rest of the state that its boot
// protocol asks for.
type Entry struct {
	PC  guestmem.Addr // where it begins
	Arg guestmem.Addr // the address that the boot protocol hands over: of boot_params, of a device tree
}
