package vm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// guests are those of a few instructions that every architecture has.
type guests struct {
	spin, halt, reset, powerOff vm.Loader
	hello                       vm.Loader     // says "hello, world" on the console and resets
	twoCounters                 vm.Loader     // two processors count, each in a word of its own, without end
	counters                    guestmem.Addr // the words
}

var guestsOf = map[string]guests{
	"x86_64": {spin, halt, reset, powerOff, hello, twoCounters{}, counters},
	"arm64":  {arm64.Code{armSpin}, armHalt, armReset, armPowerOff, armHello, armTwoCounters, armCounters},
}

// lea rsi, text; mov ecx, 13; mov dx, 0x3f8; rep outsb; reset
var hello = append(x86.Code{0x48, 0x8d, 0x35, 0x11, 0, 0, 0, 0xb9, 13, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3,
	0x6e, 0xb0,
	0xfe, 0xe6, 0x64, 0xeb, 0xfe}, "hello, world\n"...)

// Guests of arm64, entered at EL1 with the MMU off. PSCI's functions are those of Arm DEN 0022, section 5.
const armSpin = 0x14000000 // b .

var (
	// mov w0, 0x84000009, SYSTEM_RESET; hvc #0; b .
	armReset = arm64.Code{0x52800120, 0x72b08000, 0xd4000002, armSpin}
	// mov w0, 0x84000008, SYSTEM_OFF; hvc #0; b .
	armPowerOff = arm64.Code{0x52800100, 0x72b08000, 0xd4000002, armSpin}
	// msr daifset, #15; wfi; b to the wfi
	armHalt = arm64.Code{0xd5034fdf, 0xd503207f, 0x17ffffff}
	// adr x1, text; mov x2, the UART; again: ldrb w0, [x1], #1; cbz w0, end; str w0, [x2]; b again; end: reset
	armHello = append(append(arm64.Code{0x10000141, 0xd2a12002, 0x38401420, 0x34000060, 0xb9000040, 0x17fffffd},
		armReset...), words("hello, world\n\x00")...)
	armTwoCounters = arm64.Code{
		0x52800060, 0x72b88000, // mov w0, 0xc4000003: CPU_ON
		0xd2800021,             // mov x1, 1: the second
		0x10000122,             // adr x2, second
		0xd2800003, 0xd4000002, // mov x3, 0; hvc #0
		0xd2a80204, 0xf2800084, // mov x4, armCounters + 4
		0xb9400085, 0x110004a5, 0xb9000085, 0x17fffffd, // ldr w5, [x4]; add w5, w5, 1; str w5, [x4]; b to the ldr
		0xd2a80204,                                     // second: mov x4, armCounters
		0xb9400085, 0x110004a5, 0xb9000085, 0x17fffffd, // the same
	}
)

const armCounters = arm64.RAM + 1<<20

// words are a text's bytes as instructions.
func words(text string) (code arm64.Code) {
	b := append([]byte(text), make([]byte, -len(text)&3)...)
	for ; len(b) > 0; b = b[4:] {
		code = append(code, binary.LittleEndian.Uint32(b))
	}
	return code
}

// uncover is what makes the memory map of a machine that is built cover the ring.
var uncover = map[string]func(t *testing.T, m *vm.Machine, ring vm.Span){
	"x86_64": func(t *testing.T, m *vm.Machine, ring vm.Span) {
		// The last entry's size, in the zero page at 0x7000, grows by a byte.
		const lastSize = 0x7000 + 0x2d0 + 2*20 + 8
		var size [8]byte
		binary.LittleEndian.PutUint64(size[:], uint64(ring.Base)-1<<20+1)
		if err := m.Memory().Write(size[:], lastSize); err != nil {
			t.Fatal(err)
		}
	},
	"arm64": func(t *testing.T, m *vm.Machine, ring vm.Span) {
		// The tree, at the end of the RAM, reserves nothing.
		page := make([]byte, 4096)
		at := ring.Base - guestmem.Addr(len(page))
		name := []byte("reserved-memory")
		err := m.Memory().Read(page, at)
		i := bytes.Index(page, name)
		if i < 0 {
			t.Fatalf("no %s in the page at %v: %v", name, at, err)
		}
		err = errors.Join(err, m.Memory().Write([]byte("unheard-of"), at+guestmem.Addr(i)))
		if err != nil {
			t.Fatal(err)
		}
	},
}
