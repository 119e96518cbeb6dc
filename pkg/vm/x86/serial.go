package x86

import (
	"io"
	"sync"
)

// Registers of a 16550: PC16550D datasheet, table 2.
const (
	regData = 0 // THR and RBR; the divisor's low byte with DLAB
	regIER  = 1 // the divisor's high byte with DLAB
	regIIR  = 2
	regLCR  = 3
	regMCR  = 4
	regLSR  = 5
	regMSR  = 6
	regSCR  = 7

	ierTHRE     = 1 << 1
	iirNone     = 0x01
	iirTHRE     = 0x02
	iirFIFO     = 0xc0
	lcrDLAB     = 1 << 7
	mcrLoop     = 1 << 4
	lsrIdle     = 0x60 // transmitter empty, holding register empty
	msrReady    = 0xb0 // carrier, data set ready, clear to send
	mcrModemOut = 0x0f
)

// serial is a 16550 that sends and never receives. What is written to it has been sent at once,
// so a driver that waits for the transmitter never waits.
type serial struct {
	out io.Writer
	irq func(level uint32) error

	mu                       sync.Mutex
	ier, lcr, mcr, scr       byte
	divisorLow, divisorHigh  byte
	fifo                     bool
	transmitterEmptyReported bool
}

func (s *serial) write(reg, v byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dlab := s.lcr&lcrDLAB != 0
	switch {
	case reg == regData && dlab:
		s.divisorLow = v
	case reg == regIER && dlab:
		s.divisorHigh = v
	case reg == regData:
		if s.mcr&mcrLoop == 0 {
			_, _ = s.out.Write([]byte{v}) // a guest's output must not end its run
		}
		s.transmitterEmptyReported = false
		s.updateIRQ()
	case reg == regIER:
		if v&ierTHRE != 0 && s.ier&ierTHRE == 0 {
			s.transmitterEmptyReported = false
		}
		s.ier = v & 0x0f
		s.updateIRQ()
	case reg == regIIR: // FCR when written
		s.fifo = v&1 != 0
	case reg == regLCR:
		s.lcr = v
	case reg == regMCR:
		s.mcr = v
	case reg == regSCR:
		s.scr = v
	}
}

func (s *serial) read(reg byte) byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	dlab := s.lcr&lcrDLAB != 0
	switch {
	case reg == regData && dlab:
		return s.divisorLow
	case reg == regIER && dlab:
		return s.divisorHigh
	case reg == regIER:
		return s.ier
	case reg == regIIR:
		return s.identify()
	case reg == regLCR:
		return s.lcr
	case reg == regMCR:
		return s.mcr
	case reg == regLSR:
		return lsrIdle
	case reg == regMSR:
		return s.modemStatus()
	case reg == regSCR:
		return s.scr
	}
	return 0 // RBR: nothing was received
}

// identify names the pending interrupt; reading a pending transmitter interrupt clears it.
func (s *serial) identify() byte {
	v := byte(iirNone)
	if s.pending() {
		v = iirTHRE
		s.transmitterEmptyReported = true
		s.updateIRQ()
	}
	if s.fifo {
		v |= iirFIFO
	}
	return v
}

// modemStatus is a connected modem, or in loopback the modem control register's own outputs.
func (s *serial) modemStatus() byte {
	if s.mcr&mcrLoop == 0 {
		return msrReady
	}
	o := s.mcr & mcrModemOut // DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD
	return o&1<<5 | o&2<<3 | o&4<<4 | o&8<<4
}

func (s *serial) pending() bool { return s.ier&ierTHRE != 0 && !s.transmitterEmptyReported }

func (s *serial) updateIRQ() {
	level := uint32(0)
	if s.pending() {
		level = 1
	}
	_ = s.irq(level) // a machine that is being torn down has no lines any more
}
