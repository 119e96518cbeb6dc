package qemu

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
)

// arm64Firmware is what flash holds, built from firmware/arm64.S by "make guest".
//
//go:embed firmware/arm64.bin
var arm64Firmware []byte

// arm64Mailbox lies behind the device tree of 1 MiB that QEMU writes to the start of RAM: firmware/arm64.S.
const arm64Mailbox = arm64.RAM + 1<<20

// arm64Platform is an arm64 machine: QEMU's virt, of which the board's device tree names the part that is used.
type arm64Platform struct{}

func (arm64Platform) program() string { return "qemu-system-aarch64" }

func (arm64Platform) packages() map[string]string {
	return map[string]string{
		"apt": "qemu-system-arm", "dnf": "qemu-system-aarch64-core", "pacman": "qemu-system-aarch64",
		"apk": "qemu-system-aarch64",
	}
}

// place: all of virt's RAM is one range.
func (arm64Platform) place(l vm.Layout) (uint64, func(vm.Span) uint64) {
	offset := func(s vm.Span) uint64 { return uint64(s.Base) - arm64.RAM }
	end := offset(l.Reserved) + l.Reserved.Size
	return (end + ramUnit - 1) &^ (ramUnit - 1), offset
}

func (arm64Platform) args(size uint64, t topology.Topology, threads string) []string {
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
		"-M", "virt,gic-version=3,memory-backend=ram",
		"-object", "memory-backend-file,id=ram,share=on,dump=off,mem-path=/proc/self/fd/3,align=2M,size=" +
			fmt.Sprint(size),
		"-m", fmt.Sprintf("%dk", size>>10),
		"-smp", fmt.Sprint(t.CPUs()), // the device tree says how they are arranged
		"-accel", "tcg,thread=" + threads,
		"-cpu", "cortex-a72", // the fastest that has all that Linux asks for
		"-bios", "/proc/self/fd/4",
		"-chardev", "file,id=com1,path=/proc/self/fd/5", "-serial", "chardev:com1",
		"-chardev", "socket,id=qmp,fd=6", "-mon", "chardev=qmp,mode=control",
		"-no-reboot",
		"-name", "ktstr-vmm,debug-threads=on", // names that pin finds
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
}

func (arm64Platform) check(topology.Topology) error { return nil }

func (arm64Platform) firmware() []byte {
	rom := make([]byte, fdt.PageSize)
	copy(rom, arm64Firmware)
	return rom
}

func (arm64Platform) mailbox(e vm.Entry) mailbox {
	state := binary.LittleEndian.AppendUint64(nil, uint64(e.Arg))
	state = binary.LittleEndian.AppendUint64(state, uint64(e.PC))
	return mailbox{alive: arm64Mailbox, start: arm64Mailbox + 4, state: arm64Mailbox + 8, content: state}
}

// listen makes the socket of QEMU's monitor, which has its first command in it already: events come after that.
func (arm64Platform) listen() (listener, *os.File, *os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "QMP"), os.NewFile(uintptr(ends[1]), "QMP")
	if _, err := ours.WriteString(`{"execute": "qmp_capabilities"}` + "\n"); err != nil {
		closeAll([]*os.File{ours, theirs})
		return nil, nil, nil, err
	}
	return newShutdownEvents(), ours, theirs, nil
}
