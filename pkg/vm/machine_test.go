package vm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/needs"
	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hangLimit = 60 * time.Second

// guests are guests of a few instructions for a board.
type guests struct {
	spin, halt vm.Loader // without end, and with interrupts off
	hello      vm.Loader // writes hello to the console and resets
	ends       map[string]ending
	refuses    map[string]refusal

	twoCounters vm.Loader     // starts the second processor; then each counts in a word of its own without end
	counters    guestmem.Addr // of the second one's word and, behind it, the first one's
}

type ending struct {
	kernel vm.Loader
	want   error
}

// refusal is a machine that can't be built, and why.
type refusal struct {
	cfg  vm.Config
	want error
}

const hello = "hello, world\n"

// those are the guests for the board that tests use.
var those = map[string]guests{"x86_64": x86Guests, "arm64": arm64Guests}[needs.Board().Arch()]

// machine builds a machine on a back end, to be closed with the test.
func machine(t *testing.T, b vm.Backend, cfg vm.Config) *vm.Machine {
	t.Helper()
	cfg.Backend = b
	m, err := vm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// end waits for a machine's end and returns the reason.
func end(t *testing.T, m *vm.Machine) error {
	t.Helper()
	select {
	case <-m.Done():
		return m.Wait()
	case <-time.After(hangLimit):
		t.Fatalf("the machine did not end in %v", hangLimit)
		return nil
	}
}

// runs starts a machine and returns why it ended.
func runs(t *testing.T, b vm.Backend, cfg vm.Config) error {
	t.Helper()
	m := machine(t, b, cfg)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return end(t, m)
}

func TestGuestEnds(t *testing.T) {
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for name, tc := range those.ends {
			t.Run(name, func(t *testing.T) {
				m := machine(t, b, vm.Config{Kernel: tc.kernel, Memory: 64 << 20})
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
				if err := end(t, m); !errors.Is(err, tc.want) {
					t.Errorf("ended by %v, want %v", err, tc.want)
				}
				if m.FirstExit().IsZero() {
					t.Error("nobody saw the guest run")
				}
			})
		}
	})
}

func TestStopReachesAnyGuest(t *testing.T) {
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for name, kernel := range map[string]vm.Loader{"spin": those.spin, "halt": those.halt} {
			for _, cpus := range []int{1, 2} {
				t.Run(name, func(t *testing.T) {
					m := machine(t, b, vm.Config{Kernel: kernel, CPUs: cpus})
					if err := m.Start(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(20 * time.Millisecond) // into the guest, or the firmware
					first, second := errors.New("first"), errors.New("second")
					m.Stop(first)
					m.Stop(second)
					if err := end(t, m); err != first {
						t.Errorf("ended by %v", err)
					}
					if r := m.Reasons(); len(r) != 2 || r[1] != second {
						t.Errorf("reasons %v", r)
					}
				})
			}
		}
	})
}

// A stop that comes while a processor is about to enter the guest is not lost.
func TestStopRace(t *testing.T) {
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		reason := errors.New("stopped")
		rounds := map[string]int{"kvm": 200, "emulator": 30}[b.Name()]
		for i := range rounds {
			m := machine(t, b, vm.Config{Kernel: those.spin, Memory: 16 << 20, Reserved: 8 << 10})
			if i%3 == 0 {
				m.Stop(reason) // before the start
			}
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			for busy := time.Now().Add(time.Duration(i) * time.Microsecond); time.Now().Before(busy); {
			}
			var stops sync.WaitGroup
			for range 3 {
				stops.Go(func() { m.Stop(reason) })
			}
			if err := end(t, m); err != reason {
				t.Fatal(err)
			}
			stops.Wait()
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			m.Stop(reason) // after the end: only noted
		}
	})
}

func TestLifecycle(t *testing.T) {
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		m := machine(t, b, vm.Config{Kernel: those.spin})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.Start(); !errors.Is(err, vm.ErrConfig) {
			t.Errorf("second start: %v", err)
		}
		for range 2 { // stops it, and is done once
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := m.Start(); !errors.Is(err, vm.ErrConfig) {
			t.Errorf("start after close: %v", err)
		}
		m = machine(t, b, vm.Config{Kernel: those.spin})
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		m.Stop(nil) // of a machine that is gone: harmless
	})
}

func TestConsole(t *testing.T) {
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		var out bytes.Buffer
		if err := runs(t, b, vm.Config{Kernel: those.hello, Console: &out}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
		if out.String() != hello {
			t.Errorf("console: %q", out.String())
		}
	})
}

// Two processors run at the same time: both counters move, and neither waits for the other.
func TestTwoProcessorsRunAtOnce(t *testing.T) {
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		m := machine(t, b, vm.Config{Kernel: those.twoCounters, CPUs: 2, Memory: 64 << 20})
		var words [2]guestmem.Uint32
		for i := range words {
			var err error
			if words[i], err = m.Memory().Uint32(those.counters + guestmem.Addr(4*i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(hangLimit)
		for round := range 5 {
			before := [2]uint32{words[0].Load(), words[1].Load()}
			for words[0].Load() == before[0] || words[1].Load() == before[1] {
				select {
				case <-m.Done():
					t.Fatalf("ended by %v", m.Wait())
				case <-time.After(time.Millisecond):
				}
				if time.Now().After(deadline) {
					t.Fatalf("round %d: the counters stay at %d and %d", round, words[0].Load(), words[1].Load())
				}
			}
		}
		stopped := errors.New("stopped")
		m.Stop(stopped)
		if err := end(t, m); err != stopped {
			t.Error(err)
		}
	})
}

// A guest's memory is left out of core dumps, its emulator's too.
func TestCoreDumpsLeaveGuestMemoryOut(t *testing.T) {
	const memory = 40 << 20
	undumped := func(pid int) (size uint64) {
		all, err := smaps.Read(pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.NoDump {
				size += m.Size()
			}
		}
		return size
	}
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		m := machine(t, b, vm.Config{Kernel: those.spin, Memory: memory})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if got := undumped(os.Getpid()); got < memory {
			t.Errorf("ours leave out %d bytes of %d", got, memory)
		}
		for _, pid := range children(t) {
			for deadline := time.Now().Add(hangLimit); undumped(pid) < memory; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("those of process %d leave out %d bytes of %d", pid, undumped(pid), memory)
				}
			}
		}
	})
}

// children are the processes that this one started.
func children(t *testing.T) (pids []int) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		for _, word := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestNewRefuses(t *testing.T) {
	needs.EachBackend(t, func(t *testing.T, b vm.Backend) {
		cases := map[string]refusal{
			"no kernel":         {vm.Config{}, vm.ErrConfig},
			"negative CPUs":     {vm.Config{Kernel: those.spin, CPUs: -1}, vm.ErrConfig},
			"too many CPUs":     {vm.Config{Kernel: those.spin, CPUs: 1 << 20}, vm.ErrConfig},
			"long command line": {vm.Config{Kernel: those.spin, Cmdline: strings.Repeat("x", 2048)}, vm.ErrCmdline},
			"NUL in it":         {vm.Config{Kernel: those.spin, Cmdline: "a\x00b"}, vm.ErrCmdline},
			"large initrd":      {vm.Config{Kernel: those.spin, Memory: 20 << 20, Initrd: initrd(make([]byte, 8<<20))}, vm.ErrRoom},
		}
		maps.Copy(cases, those.refuses)
		for name, tc := range cases {
			tc.cfg.Backend = b
			m, err := vm.New(tc.cfg)
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, want %v", name, err, tc.want)
			}
			if m != nil {
				t.Errorf("%s: a machine all the same", name)
			}
		}
	})
	if _, err := vm.New(vm.Config{Kernel: those.spin}); !errors.Is(err, vm.ErrConfig) {
		t.Errorf("no back end: %v", err)
	}
}

// initrd is bytes as an initial RAM file system.
type initrd string

func (i initrd) Size() uint64 { return uint64(len(i)) }

func (i initrd) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(i))
	return int64(n), err
}

// The guest reads its own memory map: one that covers the ring is EXIT 90.
func TestGuestChecksItsMap(t *testing.T) {
	needs.EachBackendOf(t, x86.Board{}, func(t *testing.T, b vm.Backend) {
		for _, covered := range []bool{false, true} {
			if got, want := mapVerdict(t, b, covered), map[bool]int32{false: 0, true: 90}[covered]; got != want {
				t.Errorf("covered %t: EXIT %d, want %d", covered, got, want)
			}
		}
	})
}

// mapVerdict is the EXIT of a guest whose map covers the ring or does not.
func mapVerdict(t *testing.T, b vm.Backend, covered bool) int32 {
	t.Helper()
	layout, err := x86.Board{}.Layout(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	image, err := guest.Demo("x86_64")
	if err != nil {
		t.Fatal(err)
	}
	ring := layout.Reserved
	m := machine(t, b, vm.Config{
		Kernel:  x86.ELF{File: bytes.NewReader(image)},
		Cmdline: shm.Params{Base: uint64(ring.Base), Size: ring.Size}.String() + " demo.scenario=ok demo.steps=0",
	})
	region, err := m.Memory().Window(ring.Base, ring.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := shm.Init(region); err != nil {
		t.Fatal(err)
	}
	if covered {
		// The last entry's size, in the zero page at 0x7000, grows by a byte.
		const lastSize = 0x7000 + 0x2d0 + 2*20 + 8
		var size [8]byte
		binary.LittleEndian.PutUint64(size[:], uint64(ring.Base)-1<<20+1)
		if err := m.Memory().Write(size[:], lastSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := end(t, m); !errors.Is(err, vm.ErrReset) {
		t.Fatal(err)
	}
	r, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	got := int32(-1)
	r.Drain(func(msg shm.Message) bool {
		if msg.Type == shm.Exit {
			got, _ = shm.DecodeCode(msg.Payload)
		}
		return true
	})
	return got
}
