package arm64

import (
	"io"
	"sync"
)

// Registers of a PL011: Arm DDI 0183, table 3-1.
const (
	uartDR    = 0x00
	uartFR    = 0x18
	uartILPR  = 0x20
	uartIBRD  = 0x24
	uartFBRD  = 0x28
	uartLCRH  = 0x2c
	uartCR    = 0x30
	uartIFLS  = 0x34
	uartIMSC  = 0x38
	uartRIS   = 0x3c
	uartMIS   = 0x40
	uartICR   = 0x44
	uartDMACR = 0x48
	uartID    = 0xfe0

	frIdle      = 0x90  // nothing to send, nothing received
	crReset     = 0x300 // transmitter and receiver are enabled
	iflsReset   = 0x12
	interruptTX = 1 << 5
	interrupts  = 0x7ff
)

// uartIDs are the identification registers, a byte each, by which a driver tells the device from others: of a
// peripheral 0x011 of Arm's, revision 1, and of a PrimeCell. The revision is that of QEMU's, with FIFOs of 16.
var uartIDs = [...]byte{0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1}

// pl011 is a UART that sends and never receives. What is written to it has been sent at once, so a driver that waits
// for the transmitter never waits; the transmitter's interrupt says so after each byte.
type pl011 struct {
	out io.Writer
	irq func(level uint32) error

	mu     sync.Mutex
	raised uint32                  // the interrupts that stand, masked or not
	mask   uint32                  // those that are let through
	level  uint32                  // of the line
	kept   [uartDMACR/4 + 1]uint32 // registers that have no effect here, by their place
}

func newPL011(out io.Writer, irq func(level uint32) error) *pl011 {
	u := &pl011{out: out, irq: irq}
	u.kept[uartCR/4], u.kept[uartIFLS/4] = crReset, iflsReset
	return u
}

func (u *pl011) write(register uint64, v uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch register {
	case uartDR:
		_, _ = u.out.Write([]byte{byte(v)}) // a guest's output must not end its run
		u.raised |= interruptTX
	case uartIMSC:
		u.mask = v & interrupts
	case uartICR:
		u.raised &^= v
	case uartILPR, uartIBRD, uartFBRD, uartLCRH, uartCR, uartIFLS, uartDMACR:
		u.kept[register/4] = v & 0xffff
	}
	u.updateIRQ()
}

func (u *pl011) read(register uint64) uint32 {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch register {
	case uartFR:
		return frIdle
	case uartIMSC:
		return u.mask
	case uartRIS:
		return u.raised
	case uartMIS:
		return u.raised & u.mask
	case uartILPR, uartIBRD, uartFBRD, uartLCRH, uartCR, uartIFLS, uartDMACR:
		return u.kept[register/4]
	}
	if register >= uartID {
		return uint32(uartIDs[(register-uartID)/4])
	}
	return 0 // DR too: nothing was received
}

func (u *pl011) updateIRQ() {
	level := uint32(0)
	if u.raised&u.mask != 0 {
		level = 1
	}
	if level != u.level {
		u.level = level
		_ = u.irq(level) // a machine that is being torn down has no lines any more
	}
}
