// Package vm is one virtual machine, from start to stop, in the words that all machines share. What its
// guest sees is a Board's part, who runs the guest's instructions a Backend's, each in a package of its
// own below this one. None of them knows what the guest says in its reserved memory.
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
)

// Config describes a machine. The zero value of every field but Kernel and Backend has a meaning.
type Config struct {
	Kernel   Loader  // what boots, and on what board; required
	Backend  Backend // who runs it; required
	Cmdline  string  // the kernel's command line
	Memory   uint64  // guest RAM in bytes, the reserved part included; 0: 512 MiB
	Reserved uint64  // bytes at the top of RAM that the guest's memory map leaves out; 0: 16 MiB
	CPUs     int     // processors, up to the board's MaxCPUs; 0: 1
	Initrd   Initrd  // the kernel's initial RAM file system; nil: none
	// Console is what the guest writes to its first serial port; nil: nothing. It must not block: the guest waits for it.
	Console io.Writer
}

// WithDefaults fills in what zero values stand for. It fails with ErrConfig.
func (c Config) WithDefaults() (Config, error) {
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
	switch {
	case c.Kernel == nil:
		return c, fmt.Errorf("%w: no kernel given", ErrConfig)
	case c.Backend == nil:
		return c, fmt.Errorf("%w: no back end given", ErrConfig)
	}
	if most := c.Kernel.Board().MaxCPUs(); c.CPUs < 0 || c.CPUs > most {
		return c, fmt.Errorf("%w: %d processors, it can be 1 to %d", ErrConfig, c.CPUs, most)
	}
	return c, nil
}

// Loader puts a kernel into guest memory.
type Loader interface {
	// Board is the board that the kernel is built for.
	Board() Board
	// Load copies the kernel into ram, which holds RAM that the kernel may use and nothing else.
	Load(ram *guestmem.Memory) (Kernel, error)
}

// Kernel is a kernel that lies in guest memory.
type Kernel struct {
	Entry guestmem.Addr // where the first processor enters it
	End   guestmem.Addr // the address behind all that it uses before it knows its memory map
	// Header is what the kernel's file says to its board's boot protocol: on x86 the setup header, from
	// offset 0x1f1 of the image on; nil for a kernel that has none, as an ELF file.
	Header []byte
}

// Initrd is an initial RAM file system. It is written straight into guest memory.
type Initrd interface {
	// Size is how many bytes WriteTo writes.
	Size() uint64
	io.WriterTo
}

// Layout says where a machine's memory lies, before there is a machine: its kernel's command line may have
// to name the reserved part.
type Layout struct {
	RAM      []Span // without the reserved part, sorted
	Reserved Span   // behind the last of them
}

// Spans lists all of the memory, sorted, the reserved part last.
func (l Layout) Spans() []Span { return append(append([]Span(nil), l.RAM...), l.Reserved) }

// Span is a run of guest-physical addresses.
type Span struct {
	Base guestmem.Addr
	Size uint64 // bytes
}

// Why setting up a machine fails, for errors.Is; the cause is wrapped beside them.
var (
	ErrConfig      = errors.New("bad machine configuration")
	ErrArch        = errors.New("guests of this architecture are not supported here")
	ErrUnavailable = errors.New("the back end can't be used on this host")
	ErrSetup       = errors.New("setting up the machine failed")
	ErrKernel      = errors.New("bad kernel")
	ErrCmdline     = errors.New("bad kernel command line")
	// ErrRoom is beside ErrKernel or ErrSetup where more guest RAM, or less, is what helps.
	ErrRoom = errors.New("it does not fit the memory")
)

// Unavailable makes an error one of a back end that can't be used on this host: it is ErrUnavailable too, and
// says what it said.
func Unavailable(err error) error { return unavailable{err} }

type unavailable struct{ error }

func (u unavailable) Is(target error) bool { return target == ErrUnavailable }
func (u unavailable) Unwrap() error        { return u.error }

// Why a machine ended by itself, for errors.Is on what Wait returns.
var (
	ErrReset       = errors.New("the guest reset the machine")
	ErrPowerOff    = errors.New("the guest powered the machine off")
	ErrTripleFault = errors.New("the guest hit a triple fault")
	ErrRun         = errors.New("the back end could not run the guest") // what it knows of that is in the message
)
