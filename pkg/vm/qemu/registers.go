package qemu

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Registers implements vm.RegisterReader: all processors stop for a moment, and the guest's clocks with them.
func (m *instance) Registers(ctx context.Context) ([]vm.Registers, error) {
	texts, err := m.monitor.ask(ctx, m.cpus, m.reaped)
	if err != nil {
		return nil, err
	}
	all := make([]vm.Registers, m.cpus)
	for i, text := range texts {
		if all[i], err = m.platform.registers(fieldsOf(text)); err != nil {
			all[i] = vm.Registers{Err: err}
		}
		all[i].CPU = i
	}
	return all, nil
}

// field is a register in the text of "info registers": a name and a number, or a segment register's selector and base.
var field = regexp.MustCompile(`([A-Z][A-Z0-9]*) *= *([0-9a-f]{1,16})\b(?: ([0-9a-f]{8,16})\b)?`)

// fieldsOf returns the registers of a text by QEMU's names, and the bases of segment registers by the name with _BASE
// behind it.
func fieldsOf(text string) map[string]uint64 {
	all := map[string]uint64{}
	add := func(name, number string) {
		if value, err := strconv.ParseUint(number, 16, 64); err == nil {
			all[name] = value
		}
	}
	for _, f := range field.FindAllStringSubmatch(text, -1) {
		if add(f[1], f[2]); f[3] != "" {
			add(f[1]+"_BASE", f[3])
		}
	}
	return all
}

// errField means that QEMU's answer has no such register.
func errField(name string) error {
	return fmt.Errorf("QEMU's answer has no %s", name)
}

// x86Registers are those that are shown, in order. QEMU shows a processor in 16- and 32-bit modes without r8 to r15.
var x86Registers = strings.Fields("rip rsp rflags rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15 " +
	"cs ss fs_base gs_base cr0 cr2 cr3 cr4 efer")

func (x86Platform) registers(fields map[string]uint64) (r vm.Registers, err error) {
	_, long := fields["RIP"]
	for _, name := range x86Registers {
		theirs := strings.ToUpper(name)
		switch {
		case name == "rflags":
			theirs = "RFL"
		case !long && len(theirs) > 1 && theirs[1] >= '1' && theirs[1] <= '9':
			continue
		}
		if !long && theirs[0] == 'R' {
			theirs = "E" + theirs[1:]
		}
		value, ok := fields[theirs]
		if !ok {
			return vm.Registers{}, errField(theirs)
		}
		r.Values = append(r.Values, vm.Register{Name: name, Value: value})
	}
	r.PC, r.SP, r.State = r.Values[0].Value, r.Values[1].Value, vm.Running
	if fields["HLT"] != 0 {
		r.State = vm.Halted // one that waits for INIT, too
	}
	return r, nil
}

func (arm64Platform) registers(fields map[string]uint64) (r vm.Registers, err error) {
	add := func(name, theirs string) {
		value, ok := fields[theirs]
		if !ok && err == nil {
			err = errField(theirs)
		}
		r.Values = append(r.Values, vm.Register{Name: name, Value: value})
	}
	add("sp", "SP")
	add("pc", "PC")
	add("pstate", "PSTATE")
	for i := range 31 {
		add(fmt.Sprintf("x%d", i), fmt.Sprintf("X%02d", i))
	}
	r.SP, r.PC = r.Values[0].Value, r.Values[1].Value // QEMU does not say whether it is halted or off
	return r, err
}
