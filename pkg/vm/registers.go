package vm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Registers are what was in the registers of one of a guest's processors at a moment.
type Registers struct {
	CPU    int
	State  State      // "" if it is not known
	PC, SP uint64     // the addresses of its next instruction and of its stack
	Values []Register // all that were read, those two included, in the order in which they are shown
	Err    error      // why they could not be read; CPU alone is valid then
}

// Register is one register by its architecture's name, in lower case.
type Register struct {
	Name  string
	Value uint64
}

// State is what a processor was doing.
type State string

// The states of a processor.
const (
	Running State = "running"
	Halted  State = "halted" // until an interrupt comes
	Off     State = "off"    // until the guest starts it
)

// Why registers can't be read, for errors.Is.
var (
	// ErrNoRegisters means that the back end has no way to read them.
	ErrNoRegisters = errors.New("the back end can't read registers")
	// ErrNotRunning means that the machine has not been started, or has been stopped.
	ErrNotRunning = errors.New("the machine does not run")
)

// RegisterReader is an Instance whose processors' registers can be read while they run.
type RegisterReader interface {
	// Registers returns those of all processors, which go on as if nothing had been. It may be called at any time after
	// Start, by several at once. It returns when ctx ends or the machine is killed, whatever the processors do; then
	// Registers.Err says so for those that have not answered.
	Registers(ctx context.Context) ([]Registers, error)
}

// registersLimit is how long the processors have to show their registers. It takes them well below a millisecond,
// unless this host is so busy that their threads don't run.
const registersLimit = 5 * time.Second

// Registers returns what is in the registers of each of the guest's processors, in their order. Each is asked at a
// moment of its own, unless the back end can stop them all. The guest goes on, and nothing waits for it but the caller,
// at most until ctx ends or for 5 s: for a processor that did not answer in time, Registers.Err says so. Registers
// fails with ErrNoRegisters, ErrNotRunning or ctx's error if none could be asked.
func (m *Machine) Registers(ctx context.Context) ([]Registers, error) {
	reader, ok := m.instance.(RegisterReader)
	if !ok {
		return nil, ErrNoRegisters
	}
	m.mu.Lock()
	running := m.started && len(m.reasons) == 0
	m.mu.Unlock()
	if !running {
		return nil, ErrNotRunning
	}
	ctx, cancel := context.WithTimeoutCause(ctx, registersLimit,
		fmt.Errorf("no answer within %v: %w", registersLimit, context.DeadlineExceeded))
	defer cancel()
	return reader.Registers(ctx)
}
