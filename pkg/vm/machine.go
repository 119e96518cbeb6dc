package vm

import (
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Machine is one virtual machine. Its methods may be called concurrently.
type Machine struct {
	instance Instance
	guest    *guestmem.Memory
	entry    Entry
	bell     chan struct{}
	rings    atomic.Uint64

	mu      sync.Mutex
	started bool
	closed  bool
	reasons []error // why it stopped, the first one first
}

// errClosed is the reason of a machine that was closed while it ran.
var errClosed = errors.New("closed")

// New builds a machine; the guest does not run yet. It fails with ErrConfig, ErrKernel, ErrCmdline, or the board's or
// the back end's errors, and then leaves nothing behind.
func New(cfg Config) (*Machine, error) {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	board := cfg.Kernel.Board()
	layout, err := board.Layout(cfg.Memory, cfg.Reserved)
	if err != nil {
		return nil, err
	}
	m := &Machine{bell: make(chan struct{}, 1)}
	spec := Spec{Board: board, Layout: layout, Topology: cfg.Topology, Pin: cfg.Pin, Console: cfg.Console, Bell: m.ring}
	m.mu.Lock() // a machine that ends at once finds its instance
	m.instance, err = cfg.Backend.New(spec, m.stop)
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := m.load(board, cfg); err != nil {
		_ = m.Close() // there is a better error
		return nil, err
	}
	return m, nil
}

// load fills the machine's memory. Where the machine has ended meanwhile, that is the error.
func (m *Machine) load(board Board, cfg Config) error {
	regions := m.instance.Regions()
	var err error
	if m.guest, err = guestmem.New(regions...); err != nil {
		return err
	}
	ram, err := guestmem.New(regions[:len(regions)-1]...)
	if err != nil {
		return err
	}
	boot := Boot{Config: cfg, Emulated: m.instance.Emulated(), CounterKHz: m.instance.CounterKHz}
	if m.entry, err = board.Load(ram, boot); err != nil {
		return err
	}
	if reasons := m.Reasons(); len(reasons) > 0 {
		return fmt.Errorf("%w: %w", ErrSetup, reasons[0])
	}
	return nil
}

// Memory returns all of the guest's RAM, including the reserved part. It must not be used after Close.
func (m *Machine) Memory() *guestmem.Memory { return m.guest }

// Start starts the guest. It fails with ErrConfig if the machine was started or closed before, otherwise with ErrSetup.
func (m *Machine) Start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started || m.closed {
		return fmt.Errorf("%w: Start of a machine that was started or closed before", ErrConfig)
	}
	m.started = true
	return m.instance.Start(m.entry)
}

// Stop stops the machine and returns at once; Wait waits for its end. The first reason counts; later ones are only
// noted. Stop works whatever the guest does: spinning, halted, or not listening.
func (m *Machine) Stop(reason error) {
	if reason == nil {
		reason = errors.New("stopped")
	}
	m.stop(reason)
}

// stop is the one path on which a machine ends, whoever ends it.
func (m *Machine) stop(reason error) {
	m.mu.Lock()
	m.reasons = append(m.reasons, reason)
	first := len(m.reasons) == 1
	m.mu.Unlock()
	if first {
		m.instance.Kill()
	}
}

// Done returns a channel that is closed when a machine that was started has ended.
func (m *Machine) Done() <-chan struct{} { return m.instance.Ended() }

// Wait waits until the machine has ended and returns the first reason: Stop's, or ErrReset, ErrPowerOff, ErrTripleFault
// or ErrRun. For a machine that was never started it may wait forever.
func (m *Machine) Wait() error {
	<-m.Done()
	return m.Reasons()[0]
}

// Reasons returns why the machine stopped, the first reason first. It returns none while the machine runs.
func (m *Machine) Reasons() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]error(nil), m.reasons...)
}

// ring passes on that the guest rang its doorbell. Rings that come before the last one was heard are one.
func (m *Machine) ring(times int) {
	m.rings.Add(uint64(times))
	select {
	case m.bell <- struct{}{}:
		// Who listens goes first: a vCPU's thread would keep its processor, and what waits there, in the guest.
		runtime.Gosched()
	default:
	}
}

// Bell returns the guest's doorbell: a channel that receives a value when the guest has rung since the last one was
// received. What the guest wrote before it rang is then visible.
func (m *Machine) Bell() <-chan struct{} { return m.bell }

// Rings returns how often the guest has rung.
func (m *Machine) Rings() uint64 { return m.rings.Load() }

// Exits counts the guest's exits to its host, by reason: a fixed set of names in order. It returns nil on a back end
// that has no exits.
func (m *Machine) Exits() iter.Seq2[string, uint64] { return m.instance.Exits() }

// FirstExit returns when the host first knew that the guest runs, or the zero time.
func (m *Machine) FirstExit() time.Time { return m.instance.FirstExit() }

// Close stops the machine if it runs, waits for it, and releases what it holds. Its memory must not be used after
// Close.
func (m *Machine) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.stop(errClosed)
	return m.instance.Close()
}
