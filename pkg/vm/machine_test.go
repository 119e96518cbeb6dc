package vm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/e820"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Guests of a few instructions, entered in 64-bit mode at ring 0.
var (
	// jmp .
	spin = x86.Code{0xeb, 0xfe}
	// cli; hlt; jmp
	halt = x86.Code{0xfa, 0xf4, 0xeb, 0xfc}
	// out 0x64, 0xfe
	reset = x86.Code{0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}
	// ud2, without an IDT
	tripleFault = x86.Code{0x0f, 0x0b}
	// out 0x600, 0x34: S5 and SLP_EN
	powerOff = x86.Code{0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe}
	// out 0x90; in 0x90; spin unless 0xff; reset
	unknownIO = x86.Code{0xb0, 0x5a, 0xe6, 0x90, 0xe4, 0x90, 0x3c, 0xff, 0x75, 0xfe, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}
	// three times out 0xe9; in 0xe9; spin unless 0xe9; reset
	ring = x86.Code{0xe6, 0xe9, 0xe6, 0xe9, 0xe6, 0xe9, 0xe4, 0xe9, 0x3c, 0xe9, 0x75, 0xfe, 0xb0,
		0xfe, 0xe6, 0x64, 0xeb, 0xfe}
	// out 0xe9 without end
	ringOn = x86.Code{0xe6, 0xe9, 0xeb, 0xfc}
	// mov rbx, 512 MiB; mov [rbx], rax; reset
	unknownMemory = x86.Code{0x48, 0xc7, 0xc3, 0, 0, 0, 0x20, 0x48, 0x89, 0x03, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}
)

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

// runs starts a machine and returns why it ended.
func runs(t *testing.T, b vm.Backend, cfg vm.Config) error {
	t.Helper()
	m := machine(t, b, cfg)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return vmtest.End(t, m)
}

func TestGuestEnds(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		g := guestsOf[on.Arch]
		t.Run("reset", func(t *testing.T) { endsBy(t, on.Backend, g.reset, vm.ErrReset) })
		t.Run("power-off", func(t *testing.T) { endsBy(t, on.Backend, g.powerOff, vm.ErrPowerOff) })
	})
}

// endsBy runs a guest and checks why it ended.
func endsBy(t *testing.T, b vm.Backend, kernel vm.Loader, want error) {
	t.Helper()
	m := machine(t, b, vm.Config{Kernel: kernel, Memory: 64 << 20})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := vmtest.End(t, m); !errors.Is(err, want) {
		t.Errorf("ended by %v, want %v", err, want)
	}
	if m.FirstExit().IsZero() {
		t.Error("nobody saw the guest run")
	}
}

func TestX86GuestEnds(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for name, tc := range map[string]struct {
			kernel x86.Code
			want   error
		}{
			"triple fault":   {tripleFault, vm.ErrTripleFault},
			"unknown port":   {unknownIO, vm.ErrReset},
			"unknown memory": {unknownMemory, vm.ErrReset},
		} {
			t.Run(name, func(t *testing.T) { endsBy(t, b, tc.kernel, tc.want) })
		}
	})
}

func TestStopReachesAnyGuest(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		for name, kernel := range map[string]vm.Loader{"spin": guestsOf[on.Arch].spin, "halt": guestsOf[on.Arch].halt} {
			for _, cpus := range []int{1, 2} {
				t.Run(name, func(t *testing.T) {
					m := machine(t, on.Backend, vm.Config{Kernel: kernel, Topology: topology.OfCores(cpus)})
					if err := m.Start(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(20 * time.Millisecond) // into the guest, or the firmware
					first, second := errors.New("first"), errors.New("second")
					m.Stop(first)
					m.Stop(second)
					if err := vmtest.End(t, m); err != first {
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
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		reason := errors.New("stopped")
		rounds := map[string]int{"kvm": 200, "emulator": 30}[on.Backend.Name()]
		for i := range rounds {
			m := machine(t, on.Backend, vm.Config{Kernel: guestsOf[on.Arch].spin, Memory: 16 << 20, Reserved: 8 << 10})
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
			if err := vmtest.End(t, m); err != reason {
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
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		m := machine(t, on.Backend, vm.Config{Kernel: guestsOf[on.Arch].spin})
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
		m = machine(t, on.Backend, vm.Config{Kernel: guestsOf[on.Arch].spin})
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		m.Stop(nil) // of a machine that is gone: harmless
	})
}

func TestConsole(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		var out bytes.Buffer
		cfg := vm.Config{Kernel: guestsOf[on.Arch].hello, Console: &out}
		if err := runs(t, on.Backend, cfg); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
		if out.String() != "hello, world\n" {
			t.Errorf("console: %q", out.String())
		}
	})
}

// Each ring of the doorbell is counted, and several are one for who listens.
func TestDoorbell(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		m := machine(t, b, vm.Config{Kernel: ring, Memory: 64 << 20})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := vmtest.End(t, m); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
		if n := m.Rings(); n != 3 {
			t.Errorf("%d rings, want 3", n)
		}
		select {
		case <-m.Bell():
		default:
			t.Error("nobody could hear it")
		}
	})
}

// A guest that rings without end while nobody listens goes on, more often than any pipe would hold, and is stopped.
func TestDoorbellWithoutEnd(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		enough := map[string]uint64{"kvm": 2000, "emulator": 200_000}[b.Name()]
		m := machine(t, b, vm.Config{Kernel: ringOn, Memory: 64 << 20})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); m.Rings() < enough; time.Sleep(time.Millisecond) {
			if time.Since(start) > vmtest.HangLimit {
				t.Fatalf("%d rings in %v", m.Rings(), vmtest.HangLimit)
			}
		}
		stopped := errors.New("stopped")
		m.Stop(stopped)
		if err := vmtest.End(t, m); err != stopped {
			t.Error(err)
		}
	})
}

// A driver's way of finding and using a 16550: scratch register, loopback, identification.
func TestSerialPortIsA16550(t *testing.T) {
	// Each step: out port, value; or in port, expected (spin where it differs).
	var guest x86.Code
	out := func(reg, v byte) { guest = append(guest, 0x66, 0xba, 0xf8+reg, 0x03, 0xb0, v, 0xee) }
	in := func(reg, want byte) { guest = append(guest, 0x66, 0xba, 0xf8+reg, 0x03, 0xec, 0x3c, want, 0x75, 0xfe) }
	out(7, 0x5a)
	in(7, 0x5a) // scratch
	out(3, 0x80)
	out(0, 0x0c)
	out(1, 0x01)
	in(0, 0x0c) // divisor, behind DLAB
	in(1, 0x01)
	out(3, 0x03)
	in(3, 0x03)
	in(1, 0x00) // IER, without DLAB
	in(5, 0x60) // transmitter empty
	in(6, 0xb0) // a modem is there
	out(4, 0x1a)
	in(6, 0x90) // loopback: RTS and OUT2 come back as CTS and DCD
	out(4, 0x0b)
	out(2, 0x01)
	in(2, 0xc1) // FIFOs on, no interrupt
	out(1, 0x02)
	in(2, 0xc2) // transmitter empty interrupt
	in(2, 0xc1) // which reading clears
	guest = append(guest, reset...)
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		if err := runs(t, b, vm.Config{Kernel: guest}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
	})
}

// twoCounters is a kernel whose first processor starts the second by INIT and SIPI; then each counts in a word of
// its own without end. The boot data's page tables end below the local APIC, so it brings its own for that.
type twoCounters struct{}

const (
	counters   = 0x12000 // the second processor's and, behind it, the first's
	secondCode = 0x10000 // where a SIPI with vector 0x10 lets a processor begin, in real mode
	apicTable  = 0xc000  // a page directory, behind the boot data's
	apicBase   = 0xfee00000
)

func (twoCounters) Board() vm.Board { return x86.Board{} }

func (twoCounters) Load(ram *guestmem.Memory) (vm.Kernel, error) {
	first := x86.Code{
		0xc7, 0x04, 0x25, 0x18, 0xa0, 0x00, 0x00, 0x03, 0xc0, 0x00, 0x00, // mov dword [0xa018], apicTable | 3: the fourth GiB
		0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, apicBase
		0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // mov dword [rbx+0xf0], 0x1ff: switch it on
		0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, // mov dword [rbx+0x310], 1<<24: to APIC 1
		0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x00, 0x00, // mov dword [rbx+0x300], 0x4500: INIT
		0xb9, 0x00, 0x00, 0x01, 0x00, // again: mov ecx, 65536
		0xff, 0xc9, 0x75, 0xfc, // dec ecx; jnz to the dec
		0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x10, 0x46, 0x00, 0x00, // mov dword [rbx+0x300], 0x4610: SIPI
		0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x00, // cmp dword [counters], 0
		0x74, 0xe3, // je again
		0xff, 0x04, 0x25, 0x04, 0x20, 0x01, 0x00, // inc dword [counters+4]
		0xeb, 0xf7, // jmp to the inc
	}
	second := []byte{
		0xb8, 0x00, 0x12, 0x8e, 0xd8, // mov ax, counters >> 4; mov ds, ax
		0x66, 0xff, 0x06, 0x00, 0x00, // inc dword [0]
		0xeb, 0xf9, // jmp to the inc
	}
	directory := make([]byte, 4096)
	const page = apicBase &^ (1<<21 - 1)
	binary.LittleEndian.PutUint64(directory[page>>21%512*8:], page|0x9b) // present, writable, not cached, 2 MiB
	return vm.Kernel{Entry: 1 << 20},
		errors.Join(ram.Write(first, 1<<20), ram.Write(second, secondCode), ram.Write(directory, apicTable))
}

// Two processors run at the same time: both counters move, and neither waits for the other.
func TestTwoProcessorsRunAtOnce(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		m := machine(t, on.Backend, vm.Config{Kernel: guestsOf[on.Arch].twoCounters, Topology: topology.OfCores(2),
			Memory: 64 << 20})
		var words [2]guestmem.Uint32
		for i := range words {
			var err error
			if words[i], err = m.Memory().Uint32(guestsOf[on.Arch].counters + guestmem.Addr(4*i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(vmtest.HangLimit)
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
		if err := vmtest.End(t, m); err != stopped {
			t.Error(err)
		}
	})
}

// An access of 2 or 4 bytes is one to each of as many ports.
func TestWidePortAccessReachesEachPort(t *testing.T) {
	guest := append(x86.Code{
		0x66, 0xba, 0xfc, 0x03, // mov dx, 0x3fc: modem control, line status, modem status, scratch
		0xb8, 0x0b, 0x00, 0x00, 0x5a, // mov eax, 0x5a00000b
		0xef,                         // out dx, eax
		0xed,                         // in eax, dx
		0x3d, 0x0b, 0x60, 0xb0, 0x5a, // cmp eax, 0x5ab0600b
		0x75, 0xfe, // jne .
		0x66, 0xba, 0xfe, 0x03, // mov dx, 0x3fe
		0xb8, 0x00, 0xa5, 0x00, 0x00, // mov eax, 0xa500
		0x66, 0xef, // out dx, ax
		0x31, 0xc0, // xor eax, eax
		0x66, 0xed, // in ax, dx
		0x3d, 0xb0, 0xa5, 0x00, 0x00, // cmp eax, 0xa5b0
		0x75, 0xfe, // jne .
	}, reset...)
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		if err := runs(t, b, vm.Config{Kernel: guest}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
	})
}

// A clock that answers: register D says that it has power.
func TestRealTimeClockAnswers(t *testing.T) {
	// out 0x70, 0x0d; in 0x71; spin unless 0x80; reset
	guest := append(x86.Code{0xb0, 0x0d, 0xe6, 0x70, 0xe4, 0x71, 0x3c, 0x80, 0x75, 0xfe}, reset...)
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		if err := runs(t, b, vm.Config{Kernel: guest}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
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
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		m := machine(t, on.Backend, vm.Config{Kernel: guestsOf[on.Arch].spin, Memory: memory})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if got := undumped(os.Getpid()); got < memory {
			t.Errorf("ours leave out %d bytes of %d", got, memory)
		}
		for _, pid := range vmtest.Children(t, os.Getpid()) {
			for deadline := time.Now().Add(vmtest.HangLimit); undumped(pid) < memory; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("those of process %d leave out %d bytes of %d", pid, undumped(pid), memory)
				}
			}
		}
	})
}

func TestNewRefuses(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for name, tc := range map[string]struct {
			cfg  vm.Config
			want error
		}{
			"no kernel":         {vm.Config{}, vm.ErrConfig},
			"negative CPUs":     {vm.Config{Kernel: spin, Topology: topology.OfCores(-1)}, vm.ErrConfig},
			"too many CPUs":     {vm.Config{Kernel: spin, Topology: topology.OfCores(255)}, vm.ErrConfig},
			"ring over memory":  {vm.Config{Kernel: spin, Memory: 16 << 20, Reserved: 16 << 20}, e820.ErrMemory},
			"ring not aligned":  {vm.Config{Kernel: spin, Reserved: 8193}, e820.ErrAlign},
			"ring too small":    {vm.Config{Kernel: spin, Reserved: 4096}, e820.ErrRingSize},
			"long command line": {vm.Config{Kernel: spin, Cmdline: strings.Repeat("x", 2048)}, vm.ErrCmdline},
			"NUL in it":         {vm.Config{Kernel: spin, Cmdline: "a\x00b"}, vm.ErrCmdline},
			"large initrd":      {vm.Config{Kernel: spin, Memory: 20 << 20, Initrd: initrd(make([]byte, 8<<20))}, vm.ErrRoom},
		} {
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
	if _, err := vm.New(vm.Config{Kernel: spin}); !errors.Is(err, vm.ErrConfig) {
		t.Errorf("no back end: %v", err)
	}
}

func TestNewRefusesForArm64(t *testing.T) {
	b := testenv.EmulatorOf(t, "arm64")
	kernel := guestsOf["arm64"].spin
	for name, tc := range map[string]struct {
		cfg  vm.Config
		want error
	}{
		"too many CPUs":     {vm.Config{Topology: topology.OfCores(124)}, vm.ErrConfig},
		"ring over memory":  {vm.Config{Memory: 16 << 20, Reserved: 16 << 20}, vm.ErrConfig},
		"ring not aligned":  {vm.Config{Reserved: 8193}, vm.ErrConfig},
		"much memory":       {vm.Config{Memory: 1 << 40}, vm.ErrConfig},
		"long command line": {vm.Config{Cmdline: strings.Repeat("x", 2048)}, vm.ErrCmdline},
		"NUL in it":         {vm.Config{Cmdline: "a\x00b"}, vm.ErrCmdline},
		"large initrd":      {vm.Config{Memory: 24 << 20, Initrd: initrd(make([]byte, 8<<20))}, vm.ErrRoom},
		"no room for trees": {vm.Config{Memory: 2<<20 + 4<<10 + 8<<10, Reserved: 8 << 10}, vm.ErrRoom},
	} {
		tc.cfg.Backend, tc.cfg.Kernel = b, kernel
		if m, err := vm.New(tc.cfg); !errors.Is(err, tc.want) || m != nil {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
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
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		for _, covered := range []bool{false, true} {
			if got, want := mapVerdict(t, on, covered), map[bool]int32{false: 0, true: 90}[covered]; got != want {
				t.Errorf("covered %t: EXIT %d, want %d", covered, got, want)
			}
		}
	})
}

// mapVerdict is the EXIT of a guest whose map covers the ring or does not.
func mapVerdict(t *testing.T, on testenv.Machine, covered bool) int32 {
	t.Helper()
	kernel := vmtest.Demo(t, on.Arch)
	layout, err := kernel.Board().Layout(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	ring := layout.Reserved
	m := machine(t, on.Backend, vm.Config{
		Kernel:  kernel,
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
		uncover[on.Arch](t, m, ring)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := vmtest.End(t, m); !errors.Is(err, vm.ErrReset) {
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
