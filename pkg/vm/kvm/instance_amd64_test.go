package kvm_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

var board = x86.Board{}

var reset = x86.Code{0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe} // out 0x64, 0xfe; jmp .

// Code that lies where there is no memory can't be run: the error carries the registers.
func TestRunErrorCarriesRegisters(t *testing.T) {
	// mov rax, 512 MiB; jmp rax: mapped, but no RAM
	_, err := ends(t, x86.Code{0x48, 0xc7, 0xc0, 0, 0, 0, 0x20, 0xff, 0xe0})
	if !errors.Is(err, vm.ErrRun) || !strings.Contains(err.Error(), "rip=0x20000000") ||
		!strings.Contains(err.Error(), "cr3=0x9000") {
		t.Errorf("ended by %v", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than a line: %v", err)
	}
}

// Exits are counted by their reason, and an access to nothing is answered: reads are all ones.
func TestExitsAreCounted(t *testing.T) {
	// mov rbx, 512 MiB; mov [rbx], rax; mov rax, [rbx]; inc rax; jnz .; reset
	guest := append(x86.Code{0x48, 0xc7, 0xc3, 0, 0, 0, 0x20, 0x48, 0x89, 0x03, 0x48, 0x8b, 0x03, 0x48, 0xff,
		0xc0, 0x75, 0xfe}, reset...)
	exits, err := ends(t, guest)
	if !errors.Is(err, vm.ErrReset) || exits["mmio"] < 2 || exits["io"] == 0 {
		t.Errorf("ended by %v, exits %v", err, exits)
	}
	exits, err = ends(t, x86.Code{0x0f, 0x0b}) // ud2, without an IDT
	if !errors.Is(err, vm.ErrTripleFault) || exits["shutdown"] == 0 {
		t.Errorf("ended by %v, exits %v", err, exits)
	}
}
