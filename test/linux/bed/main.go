// Command bed runs a program that needs KVM on a machine whose own is too slow for Linux guests:
// inside a Linux that QEMU emulates, virtualization included. It builds that Linux's initramfs from
// the program and what it uses, boots it, and ends as the program does.
//
//	bed [-add HOST[:GUEST]]... [-program PATH]... HOST-DIR KERNEL VMM PROGRAM [ARG...]
//
// HOST-DIR has the emulated Linux's kernel and KVM modules. KERNEL, the one under test, is /kernel
// there, and VMM is on its PATH.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

const (
	// quiet is how long the program may say nothing before it is taken to hang.
	quiet = 8 * time.Minute
	// marker begins the line in which the emulated Linux says how the program ended.
	marker = "bed: ended "
	memory = "3072" // MiB; what guests do not touch is not there

	// cmdline makes the timer tick periodically. QEMU's emulation of SVM clears a bit of the word
	// of pending interrupts without a lock whenever a guest is entered or left, so that a timer
	// interrupt of that moment can be lost: a one-shot timer would never come again.
	cmdline = "console=ttyS0 panic=-1 loglevel=1 mitigations=off nokaslr highres=off nohz=off"
)

// words is a flag that can be given more than once.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

const script = `#!/bin/busybox sh
/bin/busybox mkdir -p /bin /dev /proc /sys /tmp /root
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/root TERM=dumb CI=true KTSTR_TEST_KERNEL=/kernel KTSTR_TEST_VMLINUX=/vmlinux KTSTR_TEST_VMM=/bin/ktstr-vmm KTSTR_TEST_EXAMPLE=/bin/example.test KTSTR_TEST_GO=/go
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
for m in irqbypass kvm kvm-amd; do insmod /$m.ko; done
cd /root
/bin/%s
echo "` + marker + `$?"
poweroff -f
`

func main() {
	var add, programs words
	flag.Var(&add, "add", "HOST[:GUEST], a file or a folder")
	flag.Var(&programs, "program", "a program with its libraries")
	flag.Parse()
	if flag.NArg() < 4 {
		fmt.Fprintln(os.Stderr, "usage: bed [-add HOST[:GUEST]]... [-program PATH]... HOST-DIR KERNEL VMM PROGRAM [ARG...]")
		os.Exit(2)
	}
	code, err := run(add, programs, flag.Arg(0), flag.Arg(1), flag.Arg(2), flag.Args()[3:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "bed: %v\n", err)
		os.Exit(2)
	}
	os.Exit(code)
}

func run(add, programs []string, host, kernel, vmm string, command []string) (int, error) {
	a := initramfs.New()
	for _, f := range append(add,
		kernel+":/kernel",
		filepath.Join(host, "irqbypass.ko")+":/irqbypass.ko",
		filepath.Join(host, "kvm.ko")+":/kvm.ko",
		filepath.Join(host, "kvm-amd.ko")+":/kvm-amd.ko",
		filepath.Join(filepath.Dir(host), "busybox")+":/bin/busybox",
		vmm+":/bin/ktstr-vmm",
		command[0]+":/bin/"+filepath.Base(command[0]),
	) {
		from, to, ok := strings.Cut(f, ":")
		if !ok {
			to = from
		}
		if err := a.AddTree(from, to); err != nil {
			return 0, err
		}
	}
	for _, p := range programs {
		if err := a.AddProgram(p); err != nil {
			return 0, err
		}
	}
	line := filepath.Base(command[0])
	for _, arg := range command[1:] {
		line += " '" + strings.ReplaceAll(arg, "'", `'\''`) + "'" // for the shell
	}
	a.AddText("/init", fmt.Sprintf(script, line), 0o755)

	image, err := os.CreateTemp("", "bed-*.cpio")
	if err != nil {
		return 0, err
	}
	defer os.Remove(image.Name())
	defer image.Close()
	if _, err := a.WriteTo(image); err != nil {
		return 0, err
	}
	return boot(emulator(filepath.Dir(host)), filepath.Join(host, "vmlinuz"), image.Name())
}

// emulator is the command of the QEMU that fetch-linux unpacked into cache, or of the installed one.
func emulator(cache string) []string {
	dir := filepath.Join(cache, "qemu", "usr")
	program := filepath.Join(dir, "bin", "qemu-system-x86_64")
	if _, err := os.Stat(program); err != nil {
		return []string{"qemu-system-x86_64"}
	}
	return []string{program, "-L", filepath.Join(dir, "share", "seabios"), "-L", filepath.Join(dir, "share", "qemu")}
}

// boot runs the emulated Linux, passes on what the program prints, and returns the program's code. It
// has one processor: guests on two at the same moment corrupt each other and their host, up to
// QEMU 10.0 at least.
func boot(emulator []string, kernel, initrd string) (int, error) {
	args := append(emulator, "-accel", "tcg", "-smp", "1", "-cpu", "max", "-m", memory,
		"-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", cmdline)
	qemu := exec.Command(args[0], args[1:]...)
	out, err := qemu.StdoutPipe()
	if err != nil {
		return 0, err
	}
	qemu.Stderr = os.Stderr
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it takes the whole machine
	if err := qemu.Start(); err != nil {
		return 0, err
	}
	hang := time.AfterFunc(quiet, func() { _ = qemu.Process.Kill() })
	defer hang.Stop()
	code := -1
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		hang.Reset(quiet)
		line = strings.ReplaceAll(line, "\r", "")
		if text, ok := strings.CutPrefix(line, marker); ok {
			if code, err = strconv.Atoi(strings.TrimSpace(text)); err != nil {
				return 0, err
			}
		} else if _, err := io.WriteString(os.Stdout, line); err != nil {
			return 0, err
		}
		if err != nil {
			break
		}
	}
	err = qemu.Wait()
	if code < 0 {
		return 0, fmt.Errorf("the emulated Linux ended, or said nothing for %v, before the program did; its console is above: %w", quiet, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return code, nil
}
