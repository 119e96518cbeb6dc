package vm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/needs"
	"github.com/ktstr/ktstr-vmm/pkg/e820"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hangLimit = 30 * time.Second

// code is machine code as a kernel, at 1 MiB.
type code []byte

func (c code) Load(ram *guestmem.Memory) (vm.Kernel, error) {
	return vm.Kernel{Entry: 1 << 20}, ram.Write(c, 1<<20)
}

// Guests of a few instructions, entered in 64-bit mode at ring 0.
var (
	spin        = code{0xeb, 0xfe}                                                                                     // jmp .
	halt        = code{0xfa, 0xf4, 0xeb, 0xfc}                                                                         // cli; hlt; jmp
	reset       = code{0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}                                                             // out 0x64, 0xfe
	tripleFault = code{0x0f, 0x0b}                                                                                     // ud2, without an IDT
	unknownIO   = code{0xb0, 0x5a, 0xe6, 0x90, 0xe4, 0x90, 0x3c, 0xff, 0x75, 0xfe, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe} // out 0x90; in 0x90; spin unless 0xff; reset
)

func newMachine(t *testing.T, cfg vm.Config) *vm.Machine {
	t.Helper()
	needs.KVM(t)
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

func exits(m *vm.Machine) map[string]uint64 {
	all := map[string]uint64{}
	for name, n := range m.Exits() {
		all[name] = n
	}
	return all
}

func TestGuestEnds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		kernel code
		want   error
		exit   string
	}{
		{"reset", reset, vm.ErrReset, "io"},
		{"triple fault", tripleFault, vm.ErrTripleFault, "shutdown"},
		{"unknown port", unknownIO, vm.ErrReset, "io"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, vm.Config{Kernel: tc.kernel})
			if !m.FirstExit().IsZero() {
				t.Error("an exit before the start")
			}
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			if err := end(t, m); !errors.Is(err, tc.want) {
				t.Errorf("ended by %v, want %v", err, tc.want)
			}
			if n := exits(m)[tc.exit]; n == 0 {
				t.Errorf("no exit %q in %v", tc.exit, exits(m))
			}
			if m.FirstExit().IsZero() {
				t.Error("no first exit")
			}
		})
	}
}

func TestStopReachesAnyGuest(t *testing.T) {
	for name, kernel := range map[string]code{"spin": spin, "halt": halt} {
		for _, cpus := range []int{1, 2} {
			t.Run(name, func(t *testing.T) {
				m := newMachine(t, vm.Config{Kernel: kernel, CPUs: cpus})
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond) // into the guest
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
}

// A stop that comes while a vCPU is about to enter the guest is not lost.
func TestStopRace(t *testing.T) {
	reason := errors.New("stopped")
	for i := range 200 {
		m := newMachine(t, vm.Config{Kernel: spin, Memory: 16 << 20, Reserved: 8 << 10})
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
}

func TestLifecycle(t *testing.T) {
	m := newMachine(t, vm.Config{Kernel: spin})
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
	m = newMachine(t, vm.Config{Kernel: spin})
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	m.Stop(nil) // of a machine that is gone: harmless
}

// Code that lies where there is no memory can't be run: the error carries the registers.
func TestRunErrorCarriesRegisters(t *testing.T) {
	jump := code{0x48, 0xc7, 0xc0, 0, 0, 0, 0x20, 0xff, 0xe0} // mov rax, 512 MiB; jmp rax: mapped, but no RAM
	m := newMachine(t, vm.Config{Kernel: jump, Memory: 64 << 20})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	err := end(t, m)
	if !errors.Is(err, vm.ErrRun) || !strings.Contains(err.Error(), "rip=0x20000000") || !strings.Contains(err.Error(), "cr3=0x9000") {
		t.Errorf("ended by %v", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than a line: %v", err)
	}
}

func TestMMIOIsAnsweredHarmlessly(t *testing.T) {
	// mov rbx, 512 MiB; mov [rbx], rax; mov rax, [rbx]; inc rax; jnz .; reset
	guest := code{0x48, 0xc7, 0xc3, 0, 0, 0, 0x20, 0x48, 0x89, 0x03, 0x48, 0x8b, 0x03, 0x48, 0xff, 0xc0, 0x75, 0xfe, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}
	m := newMachine(t, vm.Config{Kernel: guest, Memory: 64 << 20})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := end(t, m); !errors.Is(err, vm.ErrReset) {
		t.Errorf("ended by %v", err)
	}
	if exits(m)["mmio"] < 2 {
		t.Errorf("exits %v", exits(m))
	}
}

func TestConsole(t *testing.T) {
	var out bytes.Buffer
	// lea rsi, text; mov ecx, 13; mov dx, 0x3f8; rep outsb; reset
	guest := append(code{0x48, 0x8d, 0x35, 0x11, 0, 0, 0, 0xb9, 13, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}, "hello, world\n"...)
	m := newMachine(t, vm.Config{Kernel: guest, Console: &out})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := end(t, m); !errors.Is(err, vm.ErrReset) {
		t.Fatal(err)
	}
	if out.String() != "hello, world\n" {
		t.Errorf("console: %q", out.String())
	}
}

// A driver's way of finding and using a 16550: scratch register, loopback, identification.
func TestSerialPortIsA16550(t *testing.T) {
	// Each step: out port, value; or in port, expected (spin where it differs).
	var guest code
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
	m := newMachine(t, vm.Config{Kernel: guest})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := end(t, m); !errors.Is(err, vm.ErrReset) {
		t.Fatal(err)
	}
}

func TestNewRefuses(t *testing.T) {
	needs.KVM(t)
	for name, tc := range map[string]struct {
		cfg  vm.Config
		want error
	}{
		"no kernel":         {vm.Config{}, vm.ErrConfig},
		"negative CPUs":     {vm.Config{Kernel: spin, CPUs: -1}, vm.ErrConfig},
		"too many CPUs":     {vm.Config{Kernel: spin, CPUs: 1 << 20}, vm.ErrConfig},
		"ring over memory":  {vm.Config{Kernel: spin, Memory: 16 << 20, Reserved: 16 << 20}, e820.ErrMemory},
		"ring not aligned":  {vm.Config{Kernel: spin, Reserved: 8193}, e820.ErrAlign},
		"ring too small":    {vm.Config{Kernel: spin, Reserved: 4096}, e820.ErrRingSize},
		"no device":         {vm.Config{Kernel: spin, Device: "/nonexistent/kvm"}, vm.ErrNoKVM},
		"another device":    {vm.Config{Kernel: spin, Device: "/dev/null"}, vm.ErrNoKVM},
		"long command line": {vm.Config{Kernel: spin, Cmdline: strings.Repeat("x", 2048)}, vm.ErrCmdline},
		"NUL in it":         {vm.Config{Kernel: spin, Cmdline: "a\x00b"}, vm.ErrCmdline},
	} {
		m, err := vm.New(tc.cfg)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if m != nil {
			t.Errorf("%s: a machine all the same", name)
		}
	}
}

// A device on a file system that allows none is one that even root may not open.
func TestNoPermission(t *testing.T) {
	needs.KVM(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, ""); err != nil {
		needs.Missing(t, "the right to mount a tmpfs", err)
	}
	defer unix.Unmount(dir, 0)
	path := filepath.Join(dir, "kvm")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 232))); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.New(vm.Config{Kernel: spin, Device: path}); !errors.Is(err, vm.ErrPermission) {
		t.Error(err)
	}
}

func TestELFRefuses(t *testing.T) {
	le := binary.LittleEndian
	change := func(fn func(b []byte)) []byte {
		b := bytes.Clone(guest.Demo)
		fn(b)
		return b
	}
	const phdr = 64 // the image's only program header
	for name, image := range map[string][]byte{
		"empty":                 {},
		"text":                  []byte("#!/bin/sh\n"),
		"header cut":            guest.Demo[:40],
		"segment cut":           guest.Demo[:len(guest.Demo)/2],
		"32-bit":                change(func(b []byte) { b[4] = 1 }),
		"other architecture":    change(func(b []byte) { le.PutUint16(b[18:], 183) }),
		"shared object":         change(func(b []byte) { le.PutUint16(b[16:], 3) }),
		"below 1 MiB":           change(func(b []byte) { le.PutUint64(b[phdr+24:], 0x1000) }),
		"outside RAM":           change(func(b []byte) { le.PutUint64(b[phdr+24:], 0xffffffff00000000) }),
		"wraps":                 change(func(b []byte) { le.PutUint64(b[phdr+40:], ^uint64(0)) }),
		"file over memory":      change(func(b []byte) { le.PutUint64(b[phdr+40:], 1) }),
		"entry outside":         change(func(b []byte) { le.PutUint64(b[24:], 0x100) }),
		"over the ring":         change(func(b []byte) { le.PutUint64(b[phdr+24:], 496<<20) }),
		"many headers, no room": change(func(b []byte) { le.PutUint16(b[56:], 0xffff) }),
	} {
		ram, err := guestmem.New(guestmem.Region{Mem: make([]byte, 8<<20)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (vm.ELF{File: bytes.NewReader(image)}).Load(ram); !errors.Is(err, vm.ErrKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzELF: any file as a kernel is loaded or refused.
func FuzzELF(f *testing.F) {
	f.Add(guest.Demo)
	f.Add(guest.Demo[:100])
	f.Fuzz(func(t *testing.T, image []byte) {
		ram, err := guestmem.New(guestmem.Region{Mem: make([]byte, 4<<20)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (vm.ELF{File: bytes.NewReader(image)}).Load(ram); err != nil && !errors.Is(err, vm.ErrKernel) {
			t.Fatal(err)
		}
	})
}

// The guest reads its own memory map: one that covers the ring is EXIT 90.
func TestGuestChecksItsMap(t *testing.T) {
	for _, covered := range []bool{false, true} {
		plan, err := vm.NewPlan(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		ring := plan.Reserved
		m := newMachine(t, vm.Config{
			Kernel:  vm.ELF{File: bytes.NewReader(guest.Demo)},
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
		r.Drain(func(msg shm.Message) {
			if msg.Type == shm.Exit {
				got, _ = shm.DecodeCode(msg.Payload)
			}
		})
		if want := map[bool]int32{false: 0, true: 90}[covered]; got != want {
			t.Errorf("covered %t: EXIT %d, want %d", covered, got, want)
		}
	}
}

func TestCheckDevice(t *testing.T) {
	needs.KVM(t)
	if err := vm.CheckDevice(filepath.Join(os.TempDir(), "no-such-kvm")); !errors.Is(err, vm.ErrNoKVM) {
		t.Error(err)
	}
	speed, err := vm.KernelSpeed("", 10*time.Second)
	if err != nil || speed < 1000 {
		t.Errorf("%v instructions a second, %v", speed, err)
	}
}
