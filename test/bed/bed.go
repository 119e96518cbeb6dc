// Package bed runs programs that need KVM on a machine that has none, or one too slow for Linux
// guests: inside a Linux that QEMU emulates, virtualization included.
package bed

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

const (
	// heartbeat is how often the emulated Linux says that it lives, and quiet how long it may say
	// nothing: programs may be slow, but a Linux that has lost its timer never ends.
	heartbeat = 20 * time.Second
	quiet     = 3 * time.Minute
	// marker begins what the emulated Linux says when a program begins ("+"), when it ends (its
	// code), and in between ("alive").
	marker = "\x01bed: "
	memory = "3072" // MiB; what guests do not touch is not there
)

// ErrEnded is an emulated Linux that did not live as long as its programs, for errors.Is.
var ErrEnded = errors.New("the emulated Linux ended before its programs did")

// Bed is an emulated Linux.
type Bed struct {
	Host     Host              // what is emulated
	Files    map[string]string // files and folders, by their paths inside
	Programs []string          // programs at their own paths, with their libraries
}

// Command is a program that runs in a bed.
type Command struct {
	Dir    string
	Env    []string
	Args   []string // the program's path inside first
	Output io.Writer
	Code   int // how it ended; -1 where it did not
}

// Run boots the bed, runs the commands one after the other and sets their codes. What the emulated
// Linux says beside them goes to console.
func (b Bed) Run(ctx context.Context, commands []*Command, console io.Writer) error {
	for _, c := range commands {
		c.Code = -1
	}
	kernel, err := Find(b.Host.kernel)
	if err != nil {
		return err
	}
	qemu, err := b.Host.emulator()
	if err != nil {
		return err
	}
	image, err := b.image(kernel, commands)
	if err != nil {
		return err
	}
	defer os.Remove(image)
	args := append(qemu, "-kernel", filepath.Join(kernel, b.Host.image), "-initrd", image, "-append", b.Host.cmdline)
	return boot(ctx, args, commands, console)
}

// image writes the bed's initramfs to a temporary file.
func (b Bed) image(kernel string, commands []*Command) (string, error) {
	a := initramfs.New()
	busybox, err := Find(b.Host.busybox)
	if err != nil {
		return "", err
	}
	files := map[string]string{"/bin/busybox": filepath.Join(busybox, "bin", "busybox")}
	for _, m := range b.Host.modules {
		files["/"+m+".ko"] = filepath.Join(kernel, m+".ko")
	}
	for _, set := range []map[string]string{files, b.Files} {
		for to, from := range set {
			if err := a.AddTree(from, to); err != nil {
				return "", err
			}
		}
	}
	for _, p := range b.Programs {
		if err := a.AddProgram(p); err != nil {
			return "", err
		}
	}
	a.AddText("/init", b.script(commands), 0o755)
	f, err := os.CreateTemp("", "bed-*.cpio")
	if err != nil {
		return "", err
	}
	_, err = a.WriteTo(f)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// script is the emulated Linux's /init. Huge pages are for memory that asks for them, as a guest's does: what else of a
// process is in some depends on how long the kernel had to look at it.
func (b Bed) script(commands []*Command) string {
	var s strings.Builder
	path := "/bin:/usr/bin"
	for _, p := range b.Programs {
		path += ":" + filepath.Dir(p)
	}
	s.WriteString(`#!/bin/busybox sh
/bin/busybox mkdir -p /bin /dev /proc /sys /tmp /root
/bin/busybox --install -s /bin
export PATH=` + path + ` HOME=/root TERM=dumb
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
mkdir -p /dev/pts; mount -t devpts pts /dev/pts
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
ifconfig lo up
for m in ` + strings.Join(b.Host.modules, " ") + `; do insmod /$m.ko; done
`)
	fmt.Fprintf(&s, "while sleep %.0f; do echo '%salive'; done &\n", heartbeat.Seconds(), marker)
	for _, c := range commands {
		dir := c.Dir
		if dir == "" {
			dir = "/root"
		}
		line := "env"
		for _, word := range append(c.Env, c.Args...) {
			line += " " + quote(word)
		}
		fmt.Fprintf(&s, "cd %s; echo '%s+'; %s; echo \"%s$?\"\n", quote(dir), marker, line, marker)
	}
	s.WriteString("poweroff -f\n")
	return s.String()
}

// quote makes a word of a shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// bootLimit is more than all that a boot runs may take: a shell that lives says nothing of what it waits for.
const bootLimit = 50 * time.Minute

// boot runs the emulated Linux and hands on what its programs print.
func boot(ctx context.Context, args []string, commands []*Command, console io.Writer) error {
	ctx, done := context.WithTimeout(ctx, bootLimit)
	defer done()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	hang := time.AfterFunc(quiet, func() { stop(fmt.Errorf("nothing was said for %v", quiet)) })
	defer hang.Stop()

	qemu := exec.CommandContext(ctx, args[0], args[1:]...)
	out, err := qemu.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	// It takes the whole machine, so it dies with the thread that starts it.
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := qemu.Start(); err != nil {
		return err
	}
	err = read(bufio.NewReader(out), commands, console, func() { hang.Reset(quiet) })
	if err != nil {
		stop(err)
	}
	ended := qemu.Wait()
	if err == nil && commands[len(commands)-1].Code >= 0 {
		return nil
	}
	return fmt.Errorf("%w: %w %s", ErrEnded, errors.Join(err, context.Cause(ctx), ended), stderr.Bytes())
}

// read takes the console apart: what each command prints, and its code.
func read(lines *bufio.Reader, commands []*Command, console io.Writer, alive func()) error {
	to, running := console, -1
	for {
		line, err := lines.ReadString('\n')
		alive()
		// What a program prints need not end with a line.
		text, mark, marked := strings.Cut(strings.ReplaceAll(line, "\r", ""), marker)
		if _, err := io.WriteString(to, text); err != nil {
			return err
		}
		if mark = strings.TrimSpace(mark); mark == "+" && running+1 < len(commands) {
			running++
			to = commands[running].Output
		} else if marked && mark != "alive" {
			code, err := strconv.Atoi(mark)
			if err != nil || running < 0 {
				return fmt.Errorf("the emulated Linux said %q where a program ends: %w", mark, err)
			}
			commands[running].Code = code
			to = console
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
