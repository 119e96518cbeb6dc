package qemu

import (
	"fmt"
	"time"
)

// counterSpan is how long the host's counter is watched for its frequency: what a sample may be off by, some
// ten nanoseconds, is then a millionth.
const counterSpan = 20 * time.Millisecond

// counter measures the frequency of the host's time-stamp counter, which the emulator shows its guests.
type counter struct{ first sample }

type sample struct {
	ticks uint64
	at    time.Time
}

func (c *counter) begin() { c.first = takeSample() }

// kHz returns the frequency; it takes what is left of counterSpan since begin.
func (c *counter) kHz() (uint32, error) {
	time.Sleep(counterSpan - time.Since(c.first.at))
	last := takeSample()
	khz := float64(last.ticks-c.first.ticks) / last.at.Sub(c.first.at).Seconds() / 1000
	if khz < 1 || khz > 1e8 {
		return 0, fmt.Errorf("the host's time-stamp counter: from %d to %d in %v is no frequency", c.first.ticks,
			last.ticks, last.at.Sub(c.first.at))
	}
	return uint32(khz + 0.5), nil
}

// takeSample reads counter and clock together. The best of some tries is one that nothing came between.
func takeSample() sample {
	const tries = 50
	var best sample
	least := time.Duration(1 << 62)
	for range tries {
		at := time.Now()
		ticks := hostTicks()
		if took := time.Since(at); took < least {
			least, best = took, sample{ticks, at}
		}
	}
	return best
}
