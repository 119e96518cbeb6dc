package vm_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/needs"
	"github.com/ktstr/ktstr-vmm/pkg/e820"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// Guests of a few x86 instructions, entered in 64-bit mode at ring 0.
var (
	x86Spin        = x86.Code{0xeb, 0xfe}                                                                                                 // jmp .
	x86Halt        = x86.Code{0xfa, 0xf4, 0xeb, 0xfc}                                                                                     // cli; hlt; jmp
	x86Reset       = x86.Code{0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}                                                                         // out 0x64, 0xfe
	x86TripleFault = x86.Code{0x0f, 0x0b}                                                                                                 // ud2, without an IDT
	x86PowerOff    = x86.Code{0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe}                                                       // out 0x600, 0x34: S5 and SLP_EN
	unknownIO      = x86.Code{0xb0, 0x5a, 0xe6, 0x90, 0xe4, 0x90, 0x3c, 0xff, 0x75, 0xfe, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}             // out 0x90; in 0x90; spin unless 0xff; reset
	ring           = x86.Code{0xe6, 0xe9, 0xe6, 0xe9, 0xe6, 0xe9, 0xe4, 0xe9, 0x3c, 0xe9, 0x75, 0xfe, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe} // three times out 0xe9; in 0xe9; spin unless 0xe9; reset
	ringOn         = x86.Code{0xe6, 0xe9, 0xeb, 0xfc}                                                                                     // out 0xe9 without end
	// mov rbx, 512 MiB; mov [rbx], rax; reset
	unknownMemory = x86.Code{0x48, 0xc7, 0xc3, 0, 0, 0, 0x20, 0x48, 0x89, 0x03, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}
)

// x86Hello writes a line to COM1, by lea rsi, text; mov ecx, 13; mov dx, 0x3f8; rep outsb, and resets.
var x86Hello = append(x86.Code{
	0x48, 0x8d, 0x35, 0x11, 0, 0, 0, 0xb9, 13, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe,
}, hello...)

var x86Guests = guests{
	spin: x86Spin, halt: x86Halt, hello: x86Hello, twoCounters: twoCounters{}, counters: counters,
	ends: map[string]ending{
		"reset":          {x86Reset, vm.ErrReset},
		"power-off":      {x86PowerOff, vm.ErrPowerOff},
		"triple fault":   {x86TripleFault, vm.ErrTripleFault},
		"unknown port":   {unknownIO, vm.ErrReset},
		"unknown memory": {unknownMemory, vm.ErrReset},
	},
	refuses: map[string]refusal{
		"ring over memory": {vm.Config{Kernel: x86Spin, Memory: 16 << 20, Reserved: 16 << 20}, e820.ErrMemory},
		"ring not aligned": {vm.Config{Kernel: x86Spin, Reserved: 8193}, e820.ErrAlign},
		"ring too small":   {vm.Config{Kernel: x86Spin, Reserved: 4096}, e820.ErrRingSize},
	},
}

// Each ring of the doorbell is counted, and several are one for who listens.
func TestDoorbell(t *testing.T) {
	needs.EachBackendOf(t, x86.Board{}, func(t *testing.T, b vm.Backend) {
		m := machine(t, b, vm.Config{Kernel: ring, Memory: 64 << 20})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := end(t, m); !errors.Is(err, vm.ErrReset) {
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
	needs.EachBackendOf(t, x86.Board{}, func(t *testing.T, b vm.Backend) {
		enough := map[string]uint64{"kvm": 2000, "emulator": 200_000}[b.Name()]
		m := machine(t, b, vm.Config{Kernel: ringOn, Memory: 64 << 20})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); m.Rings() < enough; time.Sleep(time.Millisecond) {
			if time.Since(start) > hangLimit {
				t.Fatalf("%d rings in %v", m.Rings(), hangLimit)
			}
		}
		stopped := errors.New("stopped")
		m.Stop(stopped)
		if err := end(t, m); err != stopped {
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
	guest = append(guest, x86Reset...)
	needs.EachBackendOf(t, x86.Board{}, func(t *testing.T, b vm.Backend) {
		if err := runs(t, b, vm.Config{Kernel: guest}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
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
	}, x86Reset...)
	needs.EachBackendOf(t, x86.Board{}, func(t *testing.T, b vm.Backend) {
		if err := runs(t, b, vm.Config{Kernel: guest}); !errors.Is(err, vm.ErrReset) {
			t.Fatal(err)
		}
	})
}

// A clock that answers: register D says that it has power.
func TestRealTimeClockAnswers(t *testing.T) {
	// out 0x70, 0x0d; in 0x71; spin unless 0x80; reset
	guest := append(x86.Code{0xb0, 0x0d, 0xe6, 0x70, 0xe4, 0x71, 0x3c, 0x80, 0x75, 0xfe}, x86Reset...)
	needs.EachBackendOf(t, x86.Board{}, func(t *testing.T, b vm.Backend) {
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
	return vm.Kernel{Entry: 1 << 20}, errors.Join(ram.Write(first, 1<<20), ram.Write(second, secondCode), ram.Write(directory, apicTable))
}
