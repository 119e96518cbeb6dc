package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// registersLimit is how long a client waits for registers.
const registersLimit = 5 * time.Second

// errReading means that registers are being read: one client at a time may have the processors stopped for it.
var errReading = errors.New("another client is reading the registers: try again")

type registersRequest struct{ head }

func (*registersRequest) answer(c *conversation) (*End, error) {
	select {
	case c.registers <- struct{}{}:
		defer func() { <-c.registers }()
	default:
		return nil, &Error{CodeBusy, errReading.Error()}
	}
	ctx, cancel := context.WithTimeout(c.closing, registersLimit)
	defer cancel()
	all, name, err := c.run.Registers(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if err := c.send(line{CPU: newCPU(r, name)}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// cpu is what is in the registers of one of the guest's processors.
type cpu struct {
	Number    int        `json:"number"`
	State     vm.State   `json:"state,omitempty"`
	PC        word       `json:"pc"`
	SP        word       `json:"sp"`
	Symbol    string     `json:"symbol,omitempty"`    // of the PC
	Registers []register `json:"registers,omitempty"` // all, in the order in which they are shown
	Error     string     `json:"error,omitempty"`     // why there are none
}

type register struct {
	Name   string `json:"name"`
	Value  word   `json:"value"`
	Symbol string `json:"symbol,omitempty"` // if the value is an address in a function that the run knows
}

// word is a register's value. In JSON it is a text, for JSON's numbers have 53 bits where others read them.
type word uint64

// MarshalText implements encoding.TextMarshaler.
func (w word) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "0x%x", uint64(w)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (w *word) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 0, 64)
	*w = word(v)
	return err
}

func newCPU(r vm.Registers, name func(uint64) string) *cpu {
	if r.Err != nil {
		return &cpu{Number: r.CPU, Error: r.Err.Error()}
	}
	c := &cpu{Number: r.CPU, State: r.State, PC: word(r.PC), SP: word(r.SP), Symbol: name(r.PC)}
	for _, v := range r.Values {
		c.Registers = append(c.Registers, register{v.Name, word(v.Value), name(v.Value)})
	}
	return c
}

// size is about as many bytes as c takes.
func (c *cpu) size() int {
	const each = 32 // beside the texts
	n := each + len(c.State) + len(c.Symbol) + len(c.Error)
	for _, r := range c.Registers {
		n += each + len(r.Name) + len(r.Symbol)
	}
	return n
}

// Registers returns what is in the registers of each of the guest's processors, and what the run calls the addresses in
// them, as run.Live's method does.
func (c Client) Registers(ctx context.Context) (all []vm.Registers, name func(address uint64) string, err error) {
	names := map[uint64]string{}
	kept := 0
	_, err = c.ask(ctx, ask("registers"), func(l line) error {
		if l.CPU == nil {
			return nil
		}
		if kept += l.CPU.size(); kept > maxLine {
			return fmt.Errorf("%w: registers of more than %d bytes", ErrProtocol, maxLine)
		}
		r := vm.Registers{CPU: l.CPU.Number, State: l.CPU.State, PC: uint64(l.CPU.PC), SP: uint64(l.CPU.SP)}
		if l.CPU.Error != "" {
			r.Err = errors.New(l.CPU.Error)
		}
		names[r.PC] = l.CPU.Symbol
		for _, v := range l.CPU.Registers {
			r.Values = append(r.Values, vm.Register{Name: v.Name, Value: uint64(v.Value)})
			if v.Symbol != "" {
				names[uint64(v.Value)] = v.Symbol
			}
		}
		all = append(all, r)
		return nil
	})
	return all, func(address uint64) string { return names[address] }, err
}
