package x86

import (
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Ports: the PC's I/O map. Those of ACPI's sleep registers are ours to choose, a byte each.
const (
	com1Base     = 0x3f8
	com1Size     = 8
	com1IRQ      = 4
	i8042Command = 0x64
	i8042Reset   = 0xfe
	lastPort     = 0xffff
	emptyBus     = 0xff // what is read where nothing answers
	rtcIndex     = 0x70
	rtcData      = 0x71

	// SleepControl is the port of ACPI's sleep control register, for back ends with devices of their own.
	SleepControl = 0x600
	sleepStatus  = 0x601
	// PowerOff is what the guest writes there to power off: SLP_TYP 5 and SLP_EN, ACPI specification, 4.8.3.7. The bits
	// outside these two fields, which are those of SleepMask, mean nothing.
	PowerOff  = sleepS5<<2 | 1<<5
	SleepMask = 7<<2 | 1<<5
	sleepS5   = 5

	// Doorbell is the port to which a guest writes any byte when the host should look at what it wrote to memory. It is
	// that of Bochs's and QEMU's debug console, which answers reads with its own number.
	Doorbell = 0xe9
)

// Bus is the devices behind a PC's I/O ports, for back ends that have none: COM1, the real-time clock, the keyboard
// controller's reset, ACPI's sleep registers and the doorbell.
type Bus struct {
	com1 serial
	rtc  rtc
	bell func(rings int)
	stop func(error)
}

// NewBus returns a bus. What the guest writes to COM1 goes to console, and each ring of the doorbell to bell; neither
// may block. irq sets the level of an interrupt line. A reset and a power-off are reported to stop.
func NewBus(console io.Writer, bell func(rings int), irq func(line, level uint32) error, stop func(error)) *Bus {
	return &Bus{
		com1: serial{out: console, irq: func(level uint32) error { return irq(com1IRQ, level) }},
		bell: bell,
		stop: stop,
	}
}

// Out handles a write of 1, 2 or 4 bytes. All devices are one byte wide, so each byte of a wider access goes to a port
// of its own, as on an ISA bus.
func (b *Bus) Out(port uint16, data []byte) {
	for i, v := range data {
		if at := int(port) + i; at <= lastPort {
			b.out(uint16(at), v)
		}
	}
}

func (b *Bus) out(port uint16, v byte) {
	switch {
	case port >= com1Base && port < com1Base+com1Size:
		b.com1.write(uint8(port-com1Base), v)
	case port == Doorbell:
		b.bell(1)
	case port == rtcIndex:
		b.rtc.selectRegister(v)
	case port == i8042Command && v == i8042Reset:
		b.stop(fmt.Errorf("%w: 0x%x to port 0x%x", vm.ErrReset, v, port))
	case port == SleepControl && v&SleepMask == PowerOff:
		b.stop(vm.ErrPowerOff)
	}
}

// In handles a read of 1, 2 or 4 bytes into data. Out says how accesses wider than a byte are handled.
func (b *Bus) In(port uint16, data []byte) {
	for i := range data {
		data[i] = emptyBus
		if at := int(port) + i; at <= lastPort {
			data[i] = b.in(uint16(at))
		}
	}
}

func (b *Bus) in(port uint16) byte {
	switch {
	case port >= com1Base && port < com1Base+com1Size:
		return b.com1.read(uint8(port - com1Base))
	case port == rtcData:
		return b.rtc.read()
	case port == i8042Command:
		return 0 // ready for a command, nothing to read
	case port == Doorbell:
		return Doorbell
	}
	return emptyBus
}
