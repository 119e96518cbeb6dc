package arm64

import (
	"encoding/binary"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Interrupts is how many interrupts the interrupt controller has for the board, those of each processor's own
// included: the least that a GIC can have that has shared ones, in steps of 32.
const Interrupts = 64

// Bus is the devices behind an arm64 machine's addresses, for back ends that have none but the interrupt
// controller: the UART.
type Bus struct{ uart *pl011 }

// NewBus returns a bus. What the guest writes to the UART goes to console, which does not block; irq sets the level
// of a shared interrupt.
func NewBus(console io.Writer, irq func(interrupt, level uint32) error) *Bus {
	return &Bus{newPL011(console, func(level uint32) error { return irq(uartInterrupt, level) })}
}

// Write is an access of up to 8 bytes that writes. It reports whether there is a device.
func (b *Bus) Write(at guestmem.Addr, data []byte) bool {
	offset, ok := uartOffset(at, data)
	// Registers have 32 bits at most, so that the first bytes are all that counts; what begins inside of one
	// has no effect.
	if ok && offset%4 == 0 {
		var value [4]byte
		copy(value[:], data)
		b.uart.write(offset, binary.LittleEndian.Uint32(value[:]))
	}
	return ok
}

// Read is an access of up to 8 bytes that reads, into data. It reports whether there is a device.
func (b *Bus) Read(at guestmem.Addr, data []byte) bool {
	offset, ok := uartOffset(at, data)
	if ok {
		var value [8]byte
		binary.LittleEndian.PutUint32(value[:], b.uart.read(offset&^3))
		clear(data)
		copy(data, value[offset%4:])
	}
	return ok
}

func uartOffset(at guestmem.Addr, data []byte) (offset uint64, ok bool) {
	offset = uint64(at - UART)
	return offset, at >= UART && len(data) > 0 && offset+uint64(len(data)) <= uartSize
}
