package qemu

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/e820"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// x86Firmware is the end of the ROM, built from firmware/x86_64.S by "make guest".
//
//go:embed firmware/x86_64.bin
var x86Firmware []byte

const (
	x86ROM     = 64 << 10 // the least that QEMU takes
	x86Mailbox = 0x5f00   // firmware/x86_64.S
	ramUnit    = 8 << 10  // what QEMU rounds RAM to
)

// x86Platform is an x86_64 machine: QEMU's microvm, with nothing on it that the board does not have.
type x86Platform struct{}

func (x86Platform) program() string { return "qemu-system-x86_64" }

func (x86Platform) packages() map[string]string {
	return map[string]string{"apt": "qemu-system-x86", "dnf": "qemu-system-x86-core", "pacman": "qemu-system-x86",
		"apk": "qemu-system-x86_64"}
}

// place: microvm has the first 3 GiB of RAM at 0 and the rest from 4 GiB on, as the board's layout does.
func (x86Platform) place(l vm.Layout) (uint64, func(vm.Span) uint64) {
	offset := func(s vm.Span) uint64 {
		if a := uint64(s.Base); a >= e820.MMIOEnd {
			return a - e820.MMIOEnd + e820.MMIOStart
		}
		return uint64(s.Base)
	}
	end := offset(l.Reserved) + l.Reserved.Size
	return (end + ramUnit - 1) &^ (ramUnit - 1), offset
}

func (x86Platform) args(size uint64, t topology.Topology, threads string) []string {
	cpu := "max,la57=off" // five levels of page tables cost a boot 0.4 s
	if t.Threads > 1 {
		cpu += ",vendor=GenuineIntel" // an AMD without topology extensions, which QEMU has not, has no threads for Linux 6.1
	}
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
		"-M", "microvm,memory-backend=ram,acpi=off,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off," +
			"auto-kernel-cmdline=off",
		// Aligned, the RAM's huge pages can be mapped as such.
		"-object", "memory-backend-file,id=ram,share=on,dump=off,mem-path=/proc/self/fd/3,align=2M,size=" + fmt.Sprint(size),
		"-m", fmt.Sprintf("%dk", size>>10),
		"-smp", fmt.Sprintf("%d,sockets=%d,cores=%d,threads=%d", t.CPUs(), t.Sockets, t.Cores, t.Threads),
		"-accel", "tcg,thread=" + threads,
		"-cpu", cpu,
		"-bios", "/proc/self/fd/4",
		"-chardev", "file,id=com1,path=/proc/self/fd/5", "-serial", "chardev:com1",
		"-chardev", "file,id=bell,path=/proc/self/fd/7",
		"-device", fmt.Sprintf("isa-debugcon,iobase=0x%x,chardev=bell", x86.Doorbell),
		"-device", "i8042",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=0x%x,iosize=1", x86.SleepControl), // ends QEMU with 2 * value + 1
		"-no-reboot",
		"-name", "ktstr-vmm,debug-threads=on", // names that pin finds
		"-d", "cpu_reset", "-D", "/proc/self/fd/6",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
}

// check: microvm has no dies, and a last-level cache for each socket.
func (x86Platform) check(t topology.Topology) error {
	switch {
	case t.Dies > 1:
		return fmt.Errorf("%w: %w: %s: it has no dies; KVM has", vm.ErrConfig, ErrTopology, t)
	case t.LLCCores != t.Cores:
		return fmt.Errorf("%w: %w: %d of a socket's %d cores share a last-level cache, with it all of them do; KVM can",
			vm.ErrConfig, ErrTopology, t.LLCCores, t.Cores)
	}
	return nil
}

func (x86Platform) firmware() []byte {
	rom := make([]byte, x86ROM)
	copy(rom[len(rom)-len(x86Firmware):], x86Firmware)
	return rom
}

func (x86Platform) mailbox(e vm.Entry) mailbox {
	s, le := x86.EntryState(e), binary.LittleEndian
	var b []byte
	for _, v := range []uint64{s.RIP, s.RSI, s.RSP, s.RFLAGS, s.CR0, s.CR3, s.CR4, s.EFER} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint16(b, s.GDTLimit)
	b = le.AppendUint64(b, s.GDTBase)
	b = le.AppendUint16(b, 0) // so that the next is aligned
	msrs := x86.MSRs()
	b = le.AppendUint32(b, uint32(len(msrs)))
	for _, r := range msrs {
		b = le.AppendUint32(b, r.Index)
		b = le.AppendUint64(b, r.Value)
	}
	return mailbox{alive: x86Mailbox, start: x86Mailbox + 4, state: x86Mailbox + 8, content: b}
}

func (x86Platform) listen() (listener, *os.File, *os.File, error) {
	r, w, err := os.Pipe()
	return &resetLog{}, r, w, err
}

func (w *resetLog) ended(status int) error {
	switch {
	case status == 0 && w.tripleFault:
		return vm.ErrTripleFault
	case status == 0:
		return vm.ErrReset
	case status&1 == 0:
		return nil
	}
	// isa-debug-exit: 2 * value + 1, of which the uppermost bit is lost.
	value := status >> 1
	if value&x86.SleepMask == x86.PowerOff {
		return vm.ErrPowerOff
	}
	return fmt.Errorf("%w: it wrote 0x%x, which is no power-off, to the sleep control register, port 0x%x; QEMU ends "+
		"at any value",
		vm.ErrRun, value, x86.SleepControl)
}

// mailbox is where firmware and host meet, in the guest's RAM, before the guest runs.
type mailbox struct {
	alive   guestmem.Addr // u32, not 0 when the firmware runs
	start   guestmem.Addr // u32, not 0 when the state is there
	state   guestmem.Addr
	content []byte // of the state
}
