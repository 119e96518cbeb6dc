// Package vm is one virtual machine on KVM: its memory, its kernel, its devices and its vCPUs,
// from start to stop. It knows nothing of what the guest says in its reserved memory.
//
// A machine goes New, Start, Stop, Wait, Close. Whoever or whatever ends it, it ends by Stop.
package vm

import (
	"errors"
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Defaults of Config's zero values.
const (
	DefaultMemory   = 512 << 20
	DefaultReserved = 16 << 20
	DefaultDevice   = "/dev/kvm"
)

// maxCPUs is what 8-bit APIC IDs can name beside the broadcast and the I/O APIC.
const maxCPUs = 254

// Config describes a machine. The zero value of every field but Kernel has a meaning.
type Config struct {
	Kernel   Loader    // what boots; required
	Cmdline  string    // the kernel's command line
	Memory   uint64    // guest RAM in bytes, the reserved part included; 0: 512 MiB
	Reserved uint64    // bytes at the top of RAM that the guest's memory map leaves out; 0: 16 MiB
	CPUs     int       // vCPUs, at most 254 (8-bit APIC IDs); 0: 1
	Initrd   Initrd    // the kernel's initial RAM file system; nil: none
	Console  io.Writer // what the guest writes to COM1; nil: nothing. It must not block: a vCPU waits for it
	Device   string    // the KVM device; "": /dev/kvm
}

func (c Config) withDefaults() (Config, error) {
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.Reserved == 0 {
		c.Reserved = DefaultReserved
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Console == nil {
		c.Console = io.Discard
	}
	if c.Device == "" {
		c.Device = DefaultDevice
	}
	switch {
	case c.Kernel == nil:
		return c, fmt.Errorf("%w: no kernel given", ErrConfig)
	case c.CPUs < 0 || c.CPUs > maxCPUs:
		return c, fmt.Errorf("%w: %d vCPUs, it can be 1 to %d", ErrConfig, c.CPUs, maxCPUs)
	}
	return c, nil
}

// Loader puts a kernel into guest memory.
type Loader interface {
	// Load copies the kernel into ram, which holds RAM that the kernel may use and nothing
	// else.
	Load(ram *guestmem.Memory) (Kernel, error)
}

// Kernel is a kernel that lies in guest memory.
type Kernel struct {
	Entry guestmem.Addr // where the first vCPU enters it
	End   guestmem.Addr // the address behind all that it uses before it knows its memory map
	// Setup is the x86 boot protocol's setup header, from offset 0x1f1 of the image on; nil for
	// a kernel that has none, as an ELF file.
	Setup []byte
}

// Initrd is an initial RAM file system. It is written straight into guest memory.
type Initrd interface {
	// Size is how many bytes WriteTo writes.
	Size() uint64
	io.WriterTo
}

// Plan says where a machine's memory lies, before there is a machine: its kernel's command
// line may have to name the reserved part.
type Plan struct {
	RAM      []Span // without the reserved part, sorted
	Reserved Span
}

// Span is a run of guest-physical addresses.
type Span struct {
	Base guestmem.Addr
	Size uint64 // bytes
}

// Why setting up a machine fails, for errors.Is; the cause is wrapped beside them.
var (
	ErrConfig     = errors.New("bad machine configuration")
	ErrArch       = errors.New("guests of this architecture are not supported")
	ErrNoKVM      = errors.New("no KVM on this host")
	ErrPermission = errors.New("no permission to use KVM")
	ErrBusy       = errors.New("KVM is busy")
	ErrCapability = errors.New("KVM lacks a capability")
	ErrSetup      = errors.New("setting up the machine failed")
	ErrKernel     = errors.New("bad kernel")
	ErrCmdline    = errors.New("bad kernel command line")
)

// Why a machine ended by itself, for errors.Is on what Wait returns.
var (
	ErrReset       = errors.New("the guest reset the machine")
	ErrTripleFault = errors.New("the guest hit a triple fault")
	ErrRun         = errors.New("KVM could not run the guest") // registers are in the message
)
