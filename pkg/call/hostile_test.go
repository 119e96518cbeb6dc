package call_test

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// A guest that writes anything anywhere in the area, at any time, makes the host neither crash, nor grow, nor wait.
func TestHostileGuest(t *testing.T) {
	mem, area := newArea(t)
	h, err := call.NewHost(call.Config{Area: area, Stdin: zeros{}, OnEnd: func(context.Context, int) {}})
	if err != nil {
		t.Fatal(err)
	}
	h.Start()
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	opening := make(chan struct{})
	go func() { // sessions that come and go, as the guest pleases
		defer close(opening)
		for ctx.Err() == nil {
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			if s, err := h.Open(short, call.Program{Args: []string{"x"}}); err == nil {
				_, _ = s.Write([]byte("x"))
				s.Resize(1, 1)
				_ = s.Close()
			}
			cancel()
		}
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := rand.New(rand.NewPCG(1, 2))
	slots := header(mem)
	if len(slots) == 0 {
		t.Fatal("no slots")
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		s := slots[r.IntN(len(slots))]
		data := make([]byte, r.IntN(20))
		for i := range data {
			data[i] = byte(r.IntN(3)) // numbers of sessions are small
		}
		sum := crc32.ChecksumIEEE(data)
		length := uint32(len(data))
		switch r.IntN(8) {
		case 0:
			sum++
		case 1:
			length = r.Uint32()
		}
		_ = area.Write(data, uint64(s.offset)+16)
		store(t, area, s.offset+4, uint32(r.IntN(8)))
		store(t, area, s.offset+8, length)
		store(t, area, s.offset+12, sum)
		store(t, area, s.offset, uint32(r.IntN(4)))
		if r.IntN(50) == 0 {
			store(t, area, 4*uint32(r.IntN(100)), r.Uint32()) // the header, too
		}
	}
	cancel()
	<-opening
	start := time.Now()
	h.Stop()
	if took := time.Since(start); took > hangs/2 {
		t.Errorf("Stop took %v", took)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

// A guest that calls without end, on a CPU of its own, takes a part of one of the host's.
func TestFlood(t *testing.T) {
	for name, tc := range map[string]struct {
		kind uint32
		data []byte
	}{
		"refused":      {kind: 99, data: make([]byte, 496)},
		"stdin":        {kind: 1, data: []byte{0, 0, 0, 0, 1, 0, 0, 0}},
		"no session's": {kind: 2, data: []byte{9, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			mem, area := newArea(t)
			h, err := call.NewHost(call.Config{Area: area, Stdin: zeros{}})
			if err != nil {
				t.Fatal(err)
			}
			slots := header(mem)
			for _, s := range slots {
				_ = area.Write(tc.data, uint64(s.offset)+16)
			}
			h.Start()
			const while = time.Second
			all, answered := cpuTime(t, unix.RUSAGE_SELF), 0
			guest := make(chan time.Duration)
			go func() {
				runtime.LockOSThread() // which ends with the goroutine
				for end := time.Now().Add(while); time.Now().Before(end); h.Wake() {
					for _, s := range slots {
						w, err := area.Uint32(uint64(s.offset))
						if err != nil || w.Load() == 1 {
							continue
						}
						answered++
						store(t, area, s.offset+4, tc.kind)
						store(t, area, s.offset+8, uint32(len(tc.data)))
						store(t, area, s.offset+12, crc32.ChecksumIEEE(tc.data))
						_ = area.Write(tc.data, uint64(s.offset)+16)
						w.Store(1)
					}
				}
				guest <- cpuTime(t, unix.RUSAGE_THREAD)
			}()
			theirs := <-guest
			host := cpuTime(t, unix.RUSAGE_SELF) - all - theirs
			h.Stop()
			t.Logf("%d calls; the host took %v, the guest %v, of %v", answered, host, theirs, while)
			if host > while*3/4 {
				t.Errorf("the host took %v of %v", host, while)
			}
		})
	}
}

// cpuTime is the time that this process, or thread, has run for.
func cpuTime(t *testing.T, who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		t.Error(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// store writes a word of the area, as a guest does.
func store(t testing.TB, area *guestmem.Window, off, v uint32) {
	t.Helper()
	w, err := area.Uint32(uint64(off))
	if err != nil {
		t.Fatal(err)
	}
	w.Store(v)
}

type place struct{ offset, size uint32 }

// header reads an area's header by its description.
func header(mem []byte) (slots []place) {
	le := binary.LittleEndian
	for i := range le.Uint32(mem[8:]) {
		slots = append(slots, place{le.Uint32(mem[32+8*i:]), le.Uint32(mem[36+8*i:])})
	}
	return slots
}

// TestVectors: the bytes of an area at each step of a call, as docs/call-area.md describes them.
func TestVectors(t *testing.T) {
	mem, area := newArea(t)
	h, err := call.NewHost(call.Config{Area: area, Stdin: strings.NewReader("ab\n")})
	if err != nil {
		t.Fatal(err)
	}
	vector(t, "header", mem[:512])
	g, err := call.Attach(area, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	slots := header(mem)
	slot := func(of place) []byte { return mem[of.offset:][:48] }
	done := make(chan error, 1)
	go func() {
		_, err := g.Stdin(ctx, call.CommandSession, make([]byte, call.MostBytes))
		done <- err
	}()
	await(t, area, slots[0], 1)
	vector(t, "stdin-request", slot(slots[0]))
	h.Start()
	await(t, area, slots[0], 2)
	h.Stop()
	vector(t, "stdin-response", slot(slots[0]))
	g.Poll()
	if err := <-done; err != nil {
		t.Error(err)
	}
	small := slots[3]
	for name, call := range map[string]func() error{
		"winch-request":  func() error { _, _, err := g.Winch(ctx, 2); return err },
		"output-request": func() error { return g.Output(ctx, 3, []byte("text\n")) },
		"closed-request": func() error { return g.Closed(ctx, 4, 137) },
	} {
		go func() { done <- call() }()
		await(t, area, small, 1)
		vector(t, name, slot(small))
		copy(mem[small.offset+4:], make([]byte, 40)) // as a host refuses it that says nothing
		store(t, area, small.offset, 2)
		g.Poll()
		if err := <-done; err == nil {
			t.Errorf("%s was not refused", name)
		}
	}
}

// A slot that may have no room for a session's program and its arguments gets none: it would be lost.
func TestNextInASmallSlot(t *testing.T) {
	mem, area := newArea(t)
	h, err := call.NewHost(call.Config{Area: area})
	if err != nil {
		t.Fatal(err)
	}
	h.Start()
	defer h.Stop()
	small := header(mem)[3]
	store(t, area, small.offset+4, 3)
	store(t, area, small.offset, 1)
	await(t, area, small, 2)
	if kind := binary.LittleEndian.Uint32(mem[small.offset+4:]); kind != 0 {
		t.Errorf("the answer's kind is %d", kind)
	}
}

// TestVectorOfNext is that of what a host answers to NEXT.
func TestVectorOfNext(t *testing.T) {
	mem, area := newArea(t)
	h, err := call.NewHost(call.Config{Area: area})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	opened := make(chan error, 1)
	go func() {
		_, err := h.Open(ctx, call.Program{Args: []string{"sh", "-l"}, Dir: "/src", Term: "xterm", Rows: 24, Cols: 80})
		opened <- err
	}()
	middle := header(mem)[2]
	store(t, area, middle.offset+4, 3)
	store(t, area, middle.offset, 1)
	h.Start()
	if err := <-opened; err != nil {
		t.Error(err)
	}
	await(t, area, middle, 2)
	h.Stop()
	vector(t, "next-response", mem[middle.offset:][:64])
}

func await(t *testing.T, area *guestmem.Window, s place, state uint32) {
	t.Helper()
	w, err := area.Uint32(uint64(s.offset))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(hangs); w.Load() != state; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the slot at 0x%x has the state %d, want %d", s.offset, w.Load(), state)
		}
	}
}

// vector compares bytes with a golden file, or writes it where KTSTR_UPDATE is set.
func vector(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "vectors", name+".bin")
	if os.Getenv("KTSTR_UPDATE") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s is\n% x\nwant\n% x", name, got, want)
	}
}

// FuzzHost is a hostile guest: any words and data in a slot. The host answers each request, within the slot.
func FuzzHost(f *testing.F) {
	names, err := filepath.Glob(filepath.Join("testdata", "vectors", "*-*.bin"))
	if err != nil || len(names) == 0 {
		f.Fatal("no vectors: ", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(0), text[4:])
		f.Add(uint8(9), text[4:])
	}
	f.Fuzz(func(t *testing.T, number uint8, text []byte) {
		mem, area := newArea(t)
		h, err := call.NewHost(call.Config{Area: area, Stdin: strings.NewReader("input")})
		if err != nil {
			t.Fatal(err)
		}
		slots := header(mem)
		s := slots[int(number)%len(slots)]
		text = text[:min(len(text), int(s.size)-4)]
		copy(mem[s.offset+4:], text)
		kind := binary.LittleEndian.Uint32(mem[s.offset+4:])
		store(t, area, s.offset, 1)
		h.Start()
		if kind == 2 || kind == 3 { // WINCH and NEXT may have no answer yet
			time.Sleep(time.Millisecond)
		} else {
			await(t, area, s, 2)
		}
		h.Stop()
		if n := binary.LittleEndian.Uint32(mem[s.offset+8:]); mem[s.offset] == 2 && n > s.size-16 {
			t.Fatalf("the answer has %d bytes, the slot %d", n, s.size)
		}
	})
}
