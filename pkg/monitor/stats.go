package monitor

import (
	"sync/atomic"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// BadPayload is the kind of fault that handlers find, in addition to those of package shm.
const BadPayload = "bad_payload"

// Unknown is the name under which messages of no known type are counted.
const Unknown = "unknown"

// Stats is what a monitor has counted so far.
type Stats struct {
	Messages  uint64
	Bytes     uint64            // of the ring, message headers included
	ByType    map[string]uint64 // for every known type and Unknown
	Drops     uint64            // as the guest counts them
	CRCErrors uint64
	Faults    map[string]uint64 // for every kind
	Lost      uint64            // bytes given up by faults
	Omitted   uint64            // bytes of messages that a handler never had room for
	Used      uint64            // bytes that were waiting in the ring at the last drain
	Capacity  uint64            // bytes

	BellDrains uint64 // drains because the bell rang
}

// FaultCount returns the number of faults of all kinds.
func (s Stats) FaultCount() (n uint64) {
	for _, c := range s.Faults {
		n += c
	}
	return n
}

// counters are the monitor's statistics. Its goroutine alone writes them, once a drain; anyone
// reads them.
type counters struct {
	messages, bytes, drops, crcErrors, lost, omitted, used atomic.Uint64
	byType                                                 []atomic.Uint64 // as shm.Types, then unknown
	faults                                                 []atomic.Uint64 // as shm.FaultKinds, then BadPayload
	bellDrains                                             atomic.Uint64   // whose goroutine is listen
}

func newCounters() *counters {
	return &counters{
		byType: make([]atomic.Uint64, len(shm.Types())+1),
		faults: make([]atomic.Uint64, len(shm.FaultKinds())+1),
	}
}

func (c *counters) snapshot(capacity uint64) Stats {
	s := Stats{
		Messages:  c.messages.Load(),
		Bytes:     c.bytes.Load(),
		ByType:    map[string]uint64{Unknown: c.byType[len(c.byType)-1].Load()},
		Drops:     c.drops.Load(),
		CRCErrors: c.crcErrors.Load(),
		Faults:    map[string]uint64{BadPayload: c.faults[len(c.faults)-1].Load()},
		Lost:      c.lost.Load(),
		Omitted:   c.omitted.Load(),
		Used:      c.used.Load(),
		Capacity:  capacity,

		BellDrains: c.bellDrains.Load(),
	}
	for i, t := range shm.Types() {
		s.ByType[t.String()] = c.byType[i].Load()
	}
	for i, k := range shm.FaultKinds() {
		s.Faults[k.String()] = c.faults[i].Load()
	}
	return s
}
