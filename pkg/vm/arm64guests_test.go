package vm_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/needs"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
)

// A few arm64 instructions, on 32-bit registers: Arm Architecture Reference Manual, C6.2. A branch is to itself, so
// that a guest that finds what it does not expect ends at a test's limit.

// setTo is mov and movk: rd = v.
func setTo(rd, v uint32) arm64.Code {
	return arm64.Code{0x52800000 | v&0xffff<<5 | rd, 0x72a00000 | v>>16<<5 | rd}
}

// storeTo is mov of an address and a value, and str.
func storeTo(address, v uint32) arm64.Code {
	return slices.Concat(setTo(1, address), setTo(2, v), arm64.Code{0xb9000022})
}

// readsAs is mov of an address and a value, ldr, cmp and b.ne.
func readsAs(address, v uint32) arm64.Code {
	return slices.Concat(setTo(1, address), setTo(2, v), arm64.Code{0xb9400023, 0x6b02007f, 0x54000001})
}

// psci is mov of a function's number and hvc.
func psci(function uint32) arm64.Code {
	return append(setTo(0, function), 0xd4000002, 0x14000000)
}

var (
	arm64Reset    = psci(0x84000009) // Arm DEN 0022, section 5
	arm64PowerOff = psci(0x84000008)
)

var arm64Guests = guests{
	spin:        arm64.Code{0x14000000},                         // b .
	halt:        arm64.Code{0xd5034fdf, 0xd503207f, 0x17ffffff}, // msr daifset, 15; wfi; b to the wfi
	hello:       arm64Hello(),
	twoCounters: arm64TwoCounters,
	counters:    arm64.RAM + 3<<20,
	ends: map[string]ending{
		"reset":     {arm64Reset, vm.ErrReset},
		"power-off": {arm64PowerOff, vm.ErrPowerOff},
	},
	refuses: map[string]refusal{
		"ring over memory": {vm.Config{Kernel: arm64Reset, Memory: 16 << 20, Reserved: 16 << 20}, vm.ErrConfig},
		"ring not aligned": {vm.Config{Kernel: arm64Reset, Reserved: 8193}, vm.ErrConfig},
	},
}

func arm64Hello() vm.Loader {
	code := slices.Concat(setTo(2, arm64.UART), arm64.Code{
		0x10000121, // adr x1, text
		0x38401423, // ldrb w3, [x1], 1
		0x34000063, // cbz w3, to the reset
		0xb9000043, // str w3, [x2]
		0x17fffffd, // b to the ldrb
	}, arm64Reset)
	text := []byte(hello + "\x00\x00\x00\x00")
	for ; len(text) >= 4; text = text[4:] {
		code = append(code, binary.LittleEndian.Uint32(text))
	}
	return code
}

// arm64TwoCounters turns the second processor on by PSCI's CPU_ON.
var arm64TwoCounters = slices.Concat(setTo(0, 0xc4000003), arm64.Code{
	0x52800021, // mov w1, 1: the second processor
	0x10000102, // adr x2, second
	0x52800003, // mov w3, 0
	0xd4000002, // hvc 0
	0x52a80604, // mov w4, counters
	0xb9400485, // ldr w5, [x4, 4]
	0x110004a5, // add w5, w5, 1
	0xb9000485, // str w5, [x4, 4]
	0x17fffffd, // b to the ldr
	0x52a80604, // second: mov w4, counters
	0xb9400085, // ldr w5, [x4]
	0x110004a5, // add w5, w5, 1
	0xb9000085, // str w5, [x4]
	0x17fffffd, // b to the ldr
})

// A driver's way of finding and using a PL011: identification, flags, settings, and the transmitter's interrupt, which
// the interrupt controller has for pending when it is let through and until it is cleared.
func TestSerialPortIsAPL011(t *testing.T) {
	const (
		uart       = arm64.UART
		setPending = arm64.Distributor + 0x204 // of interrupts 32 to 63
		configure  = arm64.Distributor + 0xc08 // of 32 to 47
		ours       = 1 << 1                    // interrupt 33
	)
	guest := slices.Concat(
		readsAs(uart+0xfe0, 0x11), readsAs(uart+0xfe4, 0x10), readsAs(uart+0xfe8, 0x14), readsAs(uart+0xfec, 0),
		readsAs(uart+0xff0, 0x0d), readsAs(uart+0xff4, 0xf0), readsAs(uart+0xff8, 0x05), readsAs(uart+0xffc, 0xb1),
		readsAs(uart+0x18, 0x90),                       // nothing to send, nothing received
		storeTo(uart+0x24, 13), readsAs(uart+0x24, 13), // the baud rate's divisor
		storeTo(uart+0x30, 0x301), readsAs(uart+0x30, 0x301), // enabled
		storeTo(configure, 0), // by level
		readsAs(setPending, 0),
		storeTo(uart, 'x'), readsAs(uart+0x3c, 0x20), readsAs(uart+0x40, 0), readsAs(setPending, 0), // raised, but masked
		storeTo(uart+0x38, 0x20), readsAs(uart+0x40, 0x20), readsAs(setPending, ours),
		storeTo(uart+0x44, 0x20), readsAs(uart+0x3c, 0), readsAs(setPending, 0),
		storeTo(uart, 'y'), readsAs(setPending, ours),
		arm64Reset,
	)
	needs.EachBackendOf(t, arm64.Board{}, func(t *testing.T, b vm.Backend) {
		if err := runs(t, b, vm.Config{Kernel: guest}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
	})
}

// The arm64 guests on any host that has something to run them.
func TestArm64GuestEnds(t *testing.T) {
	needs.EachBackendOf(t, arm64.Board{}, func(t *testing.T, b vm.Backend) {
		for name, tc := range arm64Guests.ends {
			if err := runs(t, b, vm.Config{Kernel: tc.kernel, Memory: 64 << 20}); !errors.Is(err, tc.want) {
				t.Errorf("%s: ended by %v, want %v", name, err, tc.want)
			}
		}
	})
}
