package vm

import (
	"io"
	"iter"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Backend is who runs a guest's instructions.
type Backend interface {
	// Name is its name in reports.
	Name() string
	// New makes a machine whose memory is zero and whose processors wait for Start. Whatever ends it but
	// Kill is told to stop, once or more, from any goroutine. It fails with ErrUnavailable where this
	// host can't do it, ErrArch or ErrSetup, and leaves nothing behind then.
	New(s Spec, stop func(reason error)) (Instance, error)
}

// Spec is what a back end makes.
type Spec struct {
	Board   Board
	Layout  Layout
	CPUs    int
	Console io.Writer // what the guest writes to its first serial port; it does not block
	// Bell is told how often the guest has rung its doorbell since it was told last, soon after. It does not
	// block.
	Bell func(rings int)
}

// Instance is a machine as its back end has it. Kill may be called at any time, the other methods one after
// the other.
type Instance interface {
	// Regions is its memory, one region for each of the layout's Spans; gone after Close.
	Regions() []guestmem.Region
	// Emulated and CounterKHz are Boot's.
	Emulated() bool
	CounterKHz() (uint32, error)
	// Start lets the first processor run from an entry.
	Start(Entry) error
	// Kill ends it and returns at once, whatever the guest does.
	Kill()
	// Ended is closed when nothing of the guest runs any more, or ever will.
	Ended() <-chan struct{}
	// Exits counts why the guest left to the host, by reason, a fixed set of names in order; nil where
	// the back end knows of no exits.
	Exits() iter.Seq2[string, uint64]
	// FirstExit is when the host first heard that the guest runs, or the zero time.
	FirstExit() time.Time
	// Close ends it, waits for that, and gives back what it holds.
	Close() error
}
