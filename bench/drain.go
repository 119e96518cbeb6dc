package main

import (
	"fmt"
	"hash/crc32"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

const (
	ringBytes   = 16 << 20
	drainRounds = 41 // of each measurement, in turn, so that what disturbs one disturbs all
	writePtrOff = 16
	readPtrOff  = 24
)

// full is a full ring that can be read again and again, by several readers: its capacity is a
// multiple of its messages' size, so that moving write_ptr on by the capacity makes the same bytes
// new.
type full struct {
	payload           int
	messages          int
	mem               []byte
	buf               []byte // for the limit's copies, warm as a reader's is
	capacity          uint64
	writePtr, readPtr guestmem.Uint64
}

// window is the ring's memory, cut into regions.
func (f *full) window(regions int) (*guestmem.Window, error) {
	var parts []guestmem.Region
	for i := range regions {
		start, end := len(f.mem)*i/regions, len(f.mem)*(i+1)/regions
		parts = append(parts, guestmem.Region{Base: guestmem.Addr(start), Mem: f.mem[start:end]})
	}
	memory, err := guestmem.New(parts...)
	if err != nil {
		return nil, err
	}
	return memory.Window(0, uint64(len(f.mem)))
}

func newFull(payload int) (*full, error) {
	total := payload + shm.MessageHeaderSize
	f := &full{payload: payload, buf: make([]byte, payload), messages: ringBytes / total,
		capacity: uint64(ringBytes / total * total)}
	f.mem = make([]byte, shm.HeaderSize+f.capacity)
	region, err := f.window(1)
	if err != nil {
		return nil, err
	}
	if err := shm.Init(region); err != nil {
		return nil, err
	}
	w, err := shm.NewWriter(region)
	if err != nil {
		return nil, err
	}
	body := make([]byte, payload)
	for i := range body {
		body[i] = byte(i * 7)
	}
	for w.Write(shm.RawOutput, body) == nil {
	}
	if f.writePtr, err = region.Uint64(writePtrOff); err != nil {
		return nil, err
	}
	f.readPtr, err = region.Uint64(readPtrOff)
	return f, err
}

func (f *full) reader(regions int) (*shm.Reader, error) {
	region, err := f.window(regions)
	if err != nil {
		return nil, err
	}
	return shm.NewReader(region, shm.Limits{})
}

// round lets a reader read the whole ring.
func (f *full) round(r *shm.Reader) (time.Duration, error) {
	n := 0
	handle := func(m shm.Message) bool {
		if m.CRCOK {
			n++
		}
		return true
	}
	f.readPtr.Store(f.writePtr.Load() - f.capacity) // where this reader left it
	start := time.Now()
	for r.Drain(handle).More {
	}
	took := time.Since(start)
	if n != f.messages {
		return 0, fmt.Errorf("%d of %d messages read", n, f.messages)
	}
	return took, nil
}

// again makes the messages new.
func (f *full) again() { f.writePtr.Store(f.writePtr.Load() + f.capacity) }

// limit is the least that a reader has to do: copy each payload and take the copy's CRC-32.
func (f *full) limit() time.Duration {
	sum := uint32(0)
	start := time.Now()
	step := shm.MessageHeaderSize + f.payload
	for off := shm.HeaderSize + shm.MessageHeaderSize; off+f.payload <= len(f.mem); off += step {
		copy(f.buf, f.mem[off:off+f.payload])
		sum += crc32.ChecksumIEEE(f.buf)
	}
	took := time.Since(start)
	runtime.KeepAlive(sum)
	return took
}

// allocations counts those of one round.
func (f *full) allocations(r *shm.Reader) float64 {
	handle := func(shm.Message) bool { return true }
	return testing.AllocsPerRun(5, func() {
		f.again()
		f.readPtr.Store(f.writePtr.Load() - f.capacity)
		for r.Drain(handle).More {
		}
	})
}

// compare measures the limit and the readers in turn.
func (f *full) compare(readers []*shm.Reader) (limits []time.Duration, took [][]time.Duration, err error) {
	const warmUp = 3
	took = make([][]time.Duration, len(readers))
	for i := range drainRounds + warmUp {
		l := f.limit()
		if i >= warmUp {
			limits = append(limits, l)
		}
		for j, r := range readers {
			d, err := f.round(r)
			if err != nil {
				return nil, nil, err
			}
			if i >= warmUp {
				took[j] = append(took[j], d)
			}
		}
		f.again()
	}
	return limits, took, nil
}

func drains() error {
	fmt.Printf("%8s %8s %12s %10s %12s %8s %12s %12s\n", "payload", "regions", "messages/s", "MB/s", "limit MB/s", "ratio",
		"4 against 1", "allocations")
	var goals []func()
	for _, payload := range []int{24, 256, 4096, 65536} {
		f, err := newFull(payload)
		if err != nil {
			return err
		}
		counts := []int{1, 4}
		var readers []*shm.Reader
		for _, regions := range counts {
			r, err := f.reader(regions)
			if err != nil {
				return err
			}
			readers = append(readers, r)
		}
		limits, took, err := f.compare(readers)
		if err != nil {
			return err
		}
		limit, _ := spread(limits)
		megabytes := float64(f.messages) * float64(payload) / 1e6
		against := medianRatio(took[0], took[1])
		for i, regions := range counts {
			t, _ := spread(took[i])
			ratio, allocs := medianRatio(limits, took[i]), f.allocations(readers[i])
			fourToOne := ""
			if regions == 4 {
				fourToOne = fmt.Sprintf("%.3f", against)
			}
			fmt.Printf("%8d %8d %12.0f %10.0f %12.0f %8.2f %12s %12.0f\n", payload, regions, float64(f.messages)/t.Seconds(),
				megabytes/t.Seconds(), megabytes/limit.Seconds(), ratio, fourToOne, allocs)
			goals = append(goals, func() {
				name := fmt.Sprintf("%d-byte payloads, %d regions", payload, regions)
				if least := map[int]float64{24: 0.5, 4096: 0.8, 65536: 0.8}[payload]; least > 0 {
					goal(name, fmt.Sprintf("%.2f of the limit", ratio), fmt.Sprintf("≥ %.1f", least), ratio >= least)
				}
				if regions == 4 {
					goal(name, fmt.Sprintf("%.3f of 1 region's speed", against), "≥ 0.95", against >= 0.95)
				}
				goal(name, fmt.Sprintf("%.0f allocations in %d messages", allocs, f.messages), "0", allocs == 0)
			})
		}
	}
	for _, g := range goals {
		g()
	}
	return nil
}

// medianRatio is the middle of the ratios a/b of measurements that were made side by side.
func medianRatio(a, b []time.Duration) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i].Seconds() / b[i].Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}
