package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// CPURegisters are the registers of one of a guest's processors, for JSON.
type CPURegisters struct {
	CPU       int               `json:"cpu"`
	State     vm.State          `json:"state,omitempty"`
	PC        string            `json:"pc,omitempty"`
	Symbol    string            `json:"symbol,omitempty"` // of the PC
	SP        string            `json:"sp,omitempty"`
	Registers map[string]string `json:"registers,omitempty"` // all, by name
	Error     string            `json:"error,omitempty"`     // why there are none
}

// RegistersJSON returns what vm.Machine.Registers does in a form for JSON; name returns an address's name, or "".
func RegistersJSON(all []vm.Registers, name func(address uint64) string) []CPURegisters {
	cpus := []CPURegisters{}
	for _, r := range all {
		c := CPURegisters{CPU: r.CPU}
		if r.Err != nil {
			c.Error = r.Err.Error()
			cpus = append(cpus, c)
			continue
		}
		c.State, c.PC, c.SP, c.Symbol = r.State, hex(r.PC), hex(r.SP), name(r.PC)
		c.Registers = map[string]string{}
		for _, v := range r.Values {
			c.Registers[v.Name] = hex(v.Value)
		}
		cpus = append(cpus, c)
	}
	return cpus
}

func hex(v uint64) string { return fmt.Sprintf("0x%x", v) }

// WriteRegisters writes what vm.Machine.Registers returns: for each processor what it does and where, by the name of
// the address, and then its registers, three a line.
func WriteRegisters(w io.Writer, all []vm.Registers, name func(address uint64) string) error {
	var b strings.Builder
	for i, r := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		if r.Err != nil {
			fmt.Fprintf(&b, "CPU %d: %s\n", r.CPU, Printable(r.Err.Error()))
			continue
		}
		fmt.Fprintf(&b, "CPU %d: %s\n", r.CPU, where(r, name))
		for i, v := range r.Values {
			fmt.Fprintf(&b, "  %-9s %016x", Printable(v.Name), v.Value)
			if i%3 == 2 || i == len(r.Values)-1 {
				b.WriteByte('\n')
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// where says what a processor does, where, and, if a register has that, to where it returns.
func where(r vm.Registers, name func(uint64) string) string {
	parts := []string{"pc " + named(r.PC, name)}
	if r.State != "" {
		parts = append([]string{Printable(string(r.State))}, parts...)
	}
	for _, v := range r.Values {
		if link := name(v.Value); v.Name == "x30" && link != "" {
			parts = append(parts, "lr "+Printable(link))
		}
	}
	return strings.Join(parts, ", ")
}

func named(address uint64, name func(uint64) string) string {
	if n := name(address); n != "" {
		return Printable(n)
	}
	return hex(address)
}
