package shm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Random messages through rings of random sizes, regions and starting positions, with drains in
// between: what the writer took arrives, in order and whole, and what it did not take is counted.
func TestWriterAgainstReader(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		capacity := rapid.IntRange(16, 700).Draw(rt, "capacity")
		// Not at the very end of 64 bits: where positions wrap, the format takes the place in the
		// data anew, and messages can overlap. TestPositionsWrap has the case without overlap.
		pos := rapid.OneOf(rapid.Uint64Range(0, 5000), rapid.Uint64Range(0, 1<<64-1<<20)).Draw(rt, "position")
		r := newRingAt(t, 40+capacity, rapid.IntRange(1, 5).Draw(rt, "regions"), pos,
			shm.Limits{Messages: rapid.IntRange(1, 10).Draw(rt, "limit")})
		var sent, got []entry
		drops := uint64(0)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			if rapid.IntRange(0, 3).Draw(rt, "step") == 0 {
				r.reader.Drain(keep(&got))
				continue
			}
			e := entry{shm.Type(rapid.Uint32().Draw(rt, "type")), rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(rt, "payload"), true}
			switch err := r.writer.Write(e.Type, e.Payload); {
			case err == nil:
				sent = append(sent, e)
			case errors.Is(err, shm.ErrFull):
				drops++
			default:
				rt.Fatal(err)
			}
		}
		for r.reader.Drain(keep(&got)).More {
		}
		if !slices.EqualFunc(sent, got,
			func(a, b entry) bool { return a.Type == b.Type && bytes.Equal(a.Payload, b.Payload) && b.CRCOK }) {
			rt.Fatalf("sent %d messages, got %d, or others", len(sent), len(got))
		}
		r.reader.Drain(keep(&got))
		if s := r.reader.Stats(); s.Drops != drops || s.Messages != uint64(len(sent)) || s.Lost != 0 {
			rt.Fatalf("%+v, %d drops", s, drops)
		}
	})
}

// The C writer of the embedded guest and the Go writer leave the same bytes.
func TestCWriterWritesTheSame(t *testing.T) {
	program := filepath.Join(t.TempDir(), "cwriter")
	src := filepath.Join("..", "..", "guest", "src")
	crc, features := "crc32_x86_64.c", []string{"-mpclmul", "-msse4.1"}
	if runtime.GOARCH == "arm64" {
		crc, features = "crc32_arm64.c", []string{"-march=armv8-a+crc"}
	}
	build := exec.Command(testenv.Tool(t, "gcc"), append(features, "-O2", "-Wall", "-Werror", "-I", src, "-o",
		program, filepath.Join("testdata", "cwriter.c"),
		filepath.Join(src, "ring.c"), filepath.Join(src, "crc32.c"), filepath.Join(src, crc))...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	rapid.Check(t, func(rt *rapid.T) {
		capacity := rapid.IntRange(16, 3000).Draw(rt, "capacity")
		pos := rapid.OneOf(rapid.Uint64Range(0, 5000), rapid.Uint64Range(1<<64-2000, 1<<64-1)).Draw(rt, "position")
		r := newRingAt(t, 40+capacity, 1, pos, shm.Limits{})
		in := binary.LittleEndian.AppendUint64(nil, uint64(len(r.mem)))
		in = append(in, r.mem...)
		for range rapid.IntRange(0, 20).Draw(rt, "messages") {
			typ := shm.Type(rapid.Uint32().Draw(rt, "type"))
			payload := rapid.SliceOfN(rapid.Byte(), 0, 500).Draw(rt, "payload")
			in = binary.LittleEndian.AppendUint32(in, uint32(typ))
			in = binary.LittleEndian.AppendUint32(in, uint32(len(payload)))
			in = append(in, payload...)
			if err := r.writer.Write(typ, payload); err != nil && !errors.Is(err, shm.ErrFull) {
				rt.Fatal(err)
			}
		}
		cmd := exec.Command(program)
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.Output()
		if err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(out, r.mem) {
			rt.Fatalf("C  %x\nGo %x", out, r.mem)
		}
	})
}

// Many writers and a live reader at once: nothing is lost, torn or out of its writer's order.
func TestManyWritersLive(t *testing.T) {
	const writers, each = 8, 2000
	r := newRing(t, 4096, shm.Limits{})
	var wg sync.WaitGroup
	for id := range writers {
		wg.Go(func() {
			payload := make([]byte, 8+id*13)
			binary.LittleEndian.PutUint32(payload, uint32(id))
			for i := 0; i < each; {
				binary.LittleEndian.PutUint32(payload[4:], uint32(i))
				if err := r.writer.Write(shm.RawOutput, payload); err == nil {
					i++
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var next [writers]uint32
	total := 0
	read := func(m shm.Message) bool {
		id, i := binary.LittleEndian.Uint32(m.Payload), binary.LittleEndian.Uint32(m.Payload[4:])
		if !m.CRCOK || len(m.Payload) != 8+int(id)*13 || next[id] != i {
			t.Errorf("writer %d: got %d of %d bytes, CRC %t, want %d", id, i, len(m.Payload), m.CRCOK, next[id])
		}
		next[id]++
		total++
		return true
	}
	limit := time.After(time.Minute)
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-limit:
			t.Fatal("the writers did not end")
		default:
		}
		r.reader.Drain(read)
	}
	if total != writers*each {
		t.Errorf("%d messages, want %d", total, writers*each)
	}
}

// A panic in the middle of a write can still report: TryWrite does not wait for the lock.
func TestTryWriteDoesNotWait(t *testing.T) {
	r := newRing(t, 1<<20, shm.Limits{})
	big := make([]byte, 500<<10)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = r.writer.Write(shm.RawOutput, big)
				r.reader.Drain(func(shm.Message) bool { return true })
			}
		}
	})
	busy, written := 0, 0
	for deadline := time.Now().Add(30 * time.Second); (busy == 0 || written == 0) && time.Now().Before(deadline); {
		switch err := r.writer.TryWrite(shm.Crash, []byte("x")); {
		case errors.Is(err, shm.ErrBusy):
			busy++
		case err == nil:
			written++
		case !errors.Is(err, shm.ErrFull):
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if busy == 0 || written == 0 {
		t.Errorf("%d times busy, %d written", busy, written)
	}
}

// WriteWait loses nothing and counts no drops: it waits until the host has made room, or its
// context ends.
func TestWriteWait(t *testing.T) {
	r := newRing(t, 40+64, shm.Limits{})
	const count = 500
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range count {
			if err := r.writer.WriteWait(t.Context(), shm.Stdout, []byte{byte(i), byte(i >> 8), 0, 0, 0}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	got := 0
	for deadline := time.Now().Add(time.Minute); got < count && time.Now().Before(deadline); {
		r.reader.Drain(func(m shm.Message) bool {
			if i := int(m.Payload[0]) | int(m.Payload[1])<<8; i != got || !m.CRCOK {
				t.Errorf("got %d, want %d", i, got)
			}
			got++
			return true
		})
	}
	wg.Wait()
	if got != count || r.get64(atDrops) != 0 {
		t.Errorf("%d of %d messages, %d drops", got, count, r.get64(atDrops))
	}

	r.write(shm.Stdout, string(make([]byte, 48))) // full
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := r.writer.WriteWait(ctx, shm.Stdout, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := r.writer.WriteWait(t.Context(), shm.Stdout, make([]byte, 49)); !errors.Is(err, shm.ErrTooLarge) {
		t.Error(err)
	}
}
