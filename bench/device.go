package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"time"
	"unsafe"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

const (
	// deviceWriter is the argument with which this program is the command of a guest that has the ring as Device memory.
	deviceWriter = "device"
	deviceSize   = 4 << 10 // of a message
	deviceCount  = 16 << 10
	deviceRounds = 5
)

// deviceTimes is what deviceWriter measures.
type deviceTimes struct {
	Stores   []time.Duration // of 8 bytes each, the limit
	Messages []time.Duration
	Copies   []time.Duration // of the same payloads into the ring, and no more
	CRCs     []time.Duration // of the same payloads
}

// deviceFlood measures how fast an arm64 Linux guest's process writes messages to the ring, which is Device memory
// there, beside plain stores of as many bytes to the same place.
func (t target) deviceFlood(g linuxGuest) error {
	_, said, err := t.whole(bootLimit, g.ours(t.mode, g.self, deviceWriter))
	if err != nil {
		return err
	}
	var times deviceTimes
	if err := json.Unmarshal([]byte(said), &times); err != nil {
		return fmt.Errorf("the guest said %q: %w", said, err)
	}
	rate := func(ds []time.Duration) string {
		median, _ := spread(ds)
		return fmt.Sprintf("%.0f MB/s", deviceCount*deviceSize/median.Seconds()/1e6)
	}
	t.figure("stores of 8 bytes to Device memory", rate(times.Stores))
	r := ratio(times.Stores, times.Messages)
	t.goal(fmt.Sprintf("messages of %d bytes there", deviceSize),
		rate(times.Messages)+fmt.Sprintf(", %.2f of it", r), "≥ 0.3",
		r >= 0.3)
	t.figure("their payloads' copies alone", rate(times.Copies))
	t.figure("their CRCs alone", rate(times.CRCs))
	return nil
}

// writeDevice is that command. The agent writes nothing to the ring until its output comes.
func writeDevice([]string) error {
	region, mem, err := shm.MapRing("/proc/cmdline", "/dev/mem")
	if err != nil {
		return err
	}
	w, err := shm.NewWriter(region)
	if err != nil {
		return err
	}
	var times deviceTimes
	for range deviceRounds {
		if err := times.round(w, region, mem[os.Getpagesize():]); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(times)
}

// round measures each once. What is stored without a message goes to the empty ring's room, which nobody reads.
func (times *deviceTimes) round(w *shm.Writer, region *guestmem.Window, room []byte) error {
	payload := make([]byte, deviceSize)
	for i := range payload {
		payload[i] = byte(i)
	}
	const places = vm.DefaultReserved/deviceSize - 1 // in the room
	for _, m := range []struct {
		times *[]time.Duration
		do    func(i int) error
	}{
		{&times.Stores, func(i int) error {
			words := unsafe.Slice((*uint64)(unsafe.Pointer(&room[i%places*deviceSize])), deviceSize/8)
			for j := range words {
				words[j] = ^uint64(i)
			}
			return nil
		}},
		{&times.Messages, func(int) error { return w.WriteWait(context.Background(), shm.RawOutput, payload) }},
		{&times.Copies, func(i int) error { return region.Write(payload, uint64(i%places*deviceSize)+shm.HeaderSize) }},
		{&times.CRCs, func(int) error { crc32.ChecksumIEEE(payload); return nil }},
	} {
		if err := untilRead(region); err != nil {
			return err
		}
		start := time.Now()
		for i := range deviceCount {
			if err := m.do(i); err != nil {
				return err
			}
		}
		*m.times = append(*m.times, time.Since(start))
	}
	return nil
}

// untilRead waits until the host has read all messages.
func untilRead(region *guestmem.Window) error {
	for ; ; time.Sleep(time.Millisecond) {
		var header [shm.HeaderSize]byte
		for off := 0; off < len(header); off += 8 { // the only way to read Device memory
			word, err := region.Uint64(uint64(off))
			if err != nil {
				return err
			}
			binary.LittleEndian.PutUint64(header[off:], word.Load())
		}
		if h := shm.DecodeHeader(header); h.ReadPtr == h.WritePtr {
			return nil
		}
	}
}
