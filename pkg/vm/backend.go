package vm

import (
	"io"
	"iter"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// Backend is what runs a guest's instructions.
type Backend interface {
	// Name returns its name for reports.
	Name() string
	// New makes a machine whose memory is zero and whose processors wait for Start. Whatever ends it, except Kill, is
	// reported to stop, once or more, from any goroutine. It fails with ErrUnavailable if this host can't run it,
	// ErrArch or ErrSetup, and then leaves nothing behind.
	New(s Spec, stop func(reason error)) (Instance, error)
}

// Spec describes the machine that a back end makes.
type Spec struct {
	Board    Board
	Layout   Layout
	Topology topology.Topology
	Pin      []int     // as in Config
	Console  io.Writer // gets what the guest writes to its first serial port; does not block
	// Bell is called soon after the guest has rung its doorbell, with the number of rings since the last call. It does
	// not block.
	Bell func(rings int)
}

// Instance is a back end's machine. Kill may be called at any time; the other methods must not be called concurrently.
type Instance interface {
	// Regions returns its memory, one region for each of the layout's Spans. It is not valid after Close.
	Regions() []guestmem.Region
	// Emulated and CounterKHz are those of Boot.
	Emulated() bool
	CounterKHz() (uint32, error)
	// Start starts the first processor at an entry.
	Start(Entry) error
	// Kill ends it and returns at once, whatever the guest does.
	Kill()
	// Ended returns a channel that is closed when nothing of the guest runs any more, or ever will.
	Ended() <-chan struct{}
	// Exits counts the guest's exits to the host, by reason: a fixed set of names in order. It returns nil if the back
	// end has no exits.
	Exits() iter.Seq2[string, uint64]
	// FirstExit returns when the host first knew that the guest runs, or the zero time.
	FirstExit() time.Time
	// Close ends it, waits for that, and releases what it holds.
	Close() error
}
