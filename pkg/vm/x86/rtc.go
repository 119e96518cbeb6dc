package x86

import (
	"sync/atomic"
	"time"
)

// Registers of an MC146818: datasheet, "Address map", and the century where PCs have it.
const (
	rtcSeconds  = 0x00
	rtcMinutes  = 0x02
	rtcHours    = 0x04
	rtcWeekday  = 0x06
	rtcDay      = 0x07
	rtcMonth    = 0x08
	rtcYear     = 0x09
	rtcA        = 0x0a
	rtcB        = 0x0b
	rtcD        = 0x0d
	rtcCentury  = 0x32
	rtcDivider  = 0x26 // register A: 32 kHz, no update in progress
	rtc24Hours  = 0x02 // register B: in BCD, and no interrupts
	rtcValid    = 0x80 // register D: it has power
	rtcRegister = 0x7f // of the index; the bit above masks NMIs
)

// rtc is a clock that shows the host's time in UTC and can't be set. Linux waits a second for one that does
// not answer.
type rtc struct{ index atomic.Uint32 }

func (r *rtc) selectRegister(v byte) { r.index.Store(uint32(v & rtcRegister)) }

func (r *rtc) read() byte { return rtcRead(byte(r.index.Load()), time.Now().UTC()) }

func rtcRead(register byte, t time.Time) byte {
	bcd := func(n int) byte { return byte(n/10<<4 | n%10) }
	switch register {
	case rtcSeconds:
		return bcd(t.Second())
	case rtcMinutes:
		return bcd(t.Minute())
	case rtcHours:
		return bcd(t.Hour())
	case rtcWeekday:
		return bcd(int(t.Weekday()) + 1)
	case rtcDay:
		return bcd(t.Day())
	case rtcMonth:
		return bcd(int(t.Month()))
	case rtcYear:
		return bcd(t.Year() % 100)
	case rtcCentury:
		return bcd(t.Year() / 100 % 100)
	case rtcA:
		return rtcDivider
	case rtcB:
		return rtc24Hours
	case rtcD:
		return rtcValid
	}
	return 0
}
