package bed

import (
	"errors"
	"fmt"
	"os/exec"
)

// Host is what is emulated: a machine with KVM, and its Linux.
type Host struct {
	// Arch is its architecture, as Go's tools call it.
	Arch    string
	program string   // QEMU's
	machine []string // and its arguments
	kernel  string   // the kernel's package
	image   string   // its file there
	modules []string // and its modules, in the order in which they are loaded
	busybox string   // the package with the shell
	cmdline string   // the kernel's command line
}

// Hosts are those that there are, by name.
var Hosts = map[string]Host{
	"x86_64":     x86Host,
	"arm64-a72":  armHost("cortex-a72", "linux-6.1-arm64", ""),             // a processor without VHE and FEAT_S2FWB
	"arm64-nvhe": armHost(newest, "linux-6.1-arm64", " kvm-arm.mode=nvhe"), // one that has both; the kernel runs at EL1
	"arm64-vhe":  armHost(newest, "linux-6.12-arm64", ""),                  // the same, and it runs at EL2
}

// newest is a processor with all that QEMU emulates.
const newest = "max,pauth-impdef=on"

// x86Host has a 6.1: as a host, 6.12 does not survive the emulation. It has one processor: guests on two at the same
// moment corrupt each other and their host, up to QEMU 10.0 at least.
//
// Its timer ticks periodically. QEMU's emulation of SVM clears a bit of the word of pending interrupts without a lock
// whenever a guest is entered or left, so that a timer interrupt of that moment can be lost: a one-shot timer would
// never come again.
var x86Host = Host{
	Arch:    "amd64",
	program: "qemu-system-x86_64",
	machine: []string{"-cpu", "max"},
	kernel:  "linux-6.1",
	image:   "vmlinuz",
	modules: []string{"irqbypass", "kvm", "kvm-amd"},
	busybox: "busybox-static",
	cmdline: "console=ttyS0 panic=-1 loglevel=1 mitigations=off nokaslr highres=off nohz=off",
}

// armHost has KVM in its kernel. That is how Debian builds it.
func armHost(cpu, kernel, cmdline string) Host {
	return Host{
		Arch:    "arm64",
		program: "qemu-system-aarch64",
		machine: []string{"-M", "virt,virtualization=on,gic-version=3", "-cpu", cpu},
		kernel:  kernel,
		image:   "Image",
		busybox: "sysroot-arm64",
		cmdline: "console=ttyAMA0 panic=-1 loglevel=1 mitigations=off nokaslr" + cmdline,
	}
}

// Missing says what of the host is not there, by ErrMissing; nil if all is.
func (h Host) Missing() error {
	_, err := h.emulator()
	for _, name := range []string{h.kernel, h.busybox} {
		_, e := Find(name)
		err = errors.Join(err, e)
	}
	return err
}

// emulator returns the command that boots the host: of the QEMU that fetch-linux unpacked, which is for x86_64
// alone, or else of the installed one.
func (h Host) emulator() ([]string, error) {
	command, err := []string(nil), error(ErrMissing)
	if h.Arch == x86Host.Arch {
		command, err = QEMU()
	}
	if errors.Is(err, ErrMissing) {
		path, missing := exec.LookPath(h.program)
		if missing != nil {
			return nil, fmt.Errorf("QEMU %w", ErrMissing)
		}
		command, err = []string{path}, nil
	}
	return append(append(command, h.machine...), "-accel", "tcg", "-smp", "1", "-m", memory,
		"-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"), err
}
