// Package vm runs one virtual machine, from start to stop, in terms that all machines share. A Board is what its guest
// sees, a Backend is what runs the guest's instructions; each is in a package of its own below this one. None of them
// knows what the guest writes into its reserved memory.
//
// A machine's life is New, Start, Stop, Wait, Close. Whatever ends it, it ends by Stop.
package vm

import (
	"errors"
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// Defaults for Config's zero values.
const (
	DefaultMemory   = 512 << 20
	DefaultReserved = 16 << 20
)

// Config describes a machine. Every field except Kernel and Backend may be left zero.
type Config struct {
	Kernel   Loader  // the kernel, which also determines the board; required
	Backend  Backend // what runs the guest; required
	Cmdline  string  // the kernel's command line
	Memory   uint64  // guest RAM in bytes, including the reserved part; 0: 512 MiB
	Reserved uint64  // bytes at the top of RAM that the guest's memory map leaves out; 0: 16 MiB
	Initrd   Initrd  // the kernel's initial RAM file system; nil: none
	// Topology says how many processors there are, up to the board's MaxCPUs, and how they are arranged. RAM is divided
	// among its NUMA nodes: see Layout.Nodes.
	Topology topology.Topology
	// Pin is the host CPUs that the threads of the processors are pinned to: processor i to the one at i modulo the
	// length. Nil: they run where the host puts them.
	Pin []int
	// Console gets what the guest writes to its first serial port; nil: it is discarded. It must not block: the guest
	// waits.
	Console io.Writer
}

// WithDefaults returns c with its zero values replaced by their defaults. It fails with ErrConfig.
func (c Config) WithDefaults() (Config, error) {
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.Reserved == 0 {
		c.Reserved = DefaultReserved
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
	var err error
	if c.Topology, err = c.Topology.WithDefaults(); err != nil {
		return c, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if n, most := c.Topology.CPUs(), c.Kernel.Board().MaxCPUs(); n > most {
		return c, fmt.Errorf("%w: %d processors, it can be 1 to %d", ErrConfig, n, most)
	}
	return c, nil
}

// Loader loads a kernel into guest memory.
type Loader interface {
	// Board returns the board that the kernel is built for.
	Board() Board
	// Load copies the kernel into ram, which is only the RAM that the kernel may use.
	Load(ram *guestmem.Memory) (Kernel, error)
}

// Kernel is a kernel in guest memory.
type Kernel struct {
	Entry guestmem.Addr // the address where the first processor enters it
	End   guestmem.Addr // the address after everything that it uses before it knows its memory map
	// Header is what the kernel's file tells its board's boot protocol: on x86 the setup header, from offset 0x1f1 of
	// the image on; nil for a kernel that has none, such as an ELF file.
	Header []byte
}

// Initrd is an initial RAM file system. It is written straight into guest memory.
type Initrd interface {
	// Size returns how many bytes WriteTo writes.
	Size() uint64
	io.WriterTo
}

// Layout says where a machine's memory lies. It is known before the machine is built, because the kernel's command line
// may have to name the reserved part.
type Layout struct {
	RAM      []Span // without the reserved part, sorted
	Reserved Span   // after the last of them
}

// Spans returns all of the memory, sorted, the reserved part last.
func (l Layout) Spans() []Span { return append(append([]Span(nil), l.RAM...), l.Reserved) }

// How RAM is divided among NUMA nodes: Linux ignores a node of less than NODE_MIN_SIZE, arch/x86/include/asm/numa.h.
const (
	nodeUnit = 2 << 20 // no huge page lies in two nodes
	minNode  = 4 << 20
)

// Nodes divides the memory among n NUMA nodes, in order: each gets the same amount of RAM, in units of 2 MiB, and the
// last one the rest and the reserved part. It fails with ErrConfig and ErrRoom if that is less than 4 MiB each.
func (l Layout) Nodes(n int) ([][]Span, error) {
	all := uint64(0)
	for _, s := range l.RAM {
		all += s.Size
	}
	share := all / uint64(n) &^ (nodeUnit - 1)
	if share < minNode {
		return nil, fmt.Errorf("%w: %w: %d bytes of RAM for %d NUMA nodes, each takes %d", ErrConfig, ErrRoom, all, n,
			minNode)
	}
	nodes := make([][]Span, n)
	node, left := 0, share
	for _, s := range l.RAM {
		for s.Size > 0 {
			size := s.Size
			if node < n-1 {
				size = min(size, left)
			}
			nodes[node] = append(nodes[node], Span{s.Base, size})
			s.Base, s.Size = s.Base+guestmem.Addr(size), s.Size-size
			if left -= min(left, size); left == 0 && node < n-1 {
				node, left = node+1, share
			}
		}
	}
	nodes[n-1] = append(nodes[n-1], l.Reserved)
	return nodes, nil
}

// Span is a range of guest-physical addresses.
type Span struct {
	Base guestmem.Addr
	Size uint64 // bytes
}

// Why setting up a machine fails, for errors.Is; the cause is wrapped with them.
var (
	ErrConfig      = errors.New("bad machine configuration")
	ErrArch        = errors.New("guests of this architecture are not supported here")
	ErrUnavailable = errors.New("the back end can't be used on this host")
	ErrSetup       = errors.New("setting up the machine failed")
	ErrKernel      = errors.New("bad kernel")
	ErrCmdline     = errors.New("bad kernel command line")
	// ErrRoom is wrapped with ErrKernel or ErrSetup if more guest RAM, or less, would help.
	ErrRoom = errors.New("it does not fit the memory")
)

// Unavailable wraps the error of a back end that can't be used on this host, so that it is ErrUnavailable too. The
// message does not change.
func Unavailable(err error) error { return unavailable{err} }

type unavailable struct{ error }

func (u unavailable) Is(target error) bool { return target == ErrUnavailable }
func (u unavailable) Unwrap() error        { return u.error }

// Why a machine ended by itself: Wait returns them, for errors.Is.
var (
	ErrReset       = errors.New("the guest reset the machine")
	ErrPowerOff    = errors.New("the guest powered the machine off")
	ErrTripleFault = errors.New("the guest hit a triple fault")
	ErrRun         = errors.New("the back end could not run the guest") // the message says what the back end knows
)
