package vm_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
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
		armReset,
	)
	testenv.EachBackendOf(t, "arm64", func(t *testing.T, b vm.Backend) {
		if err := runs(t, b, vm.Config{Kernel: guest}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
	})
}
