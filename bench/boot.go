package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

const (
	// marker is what the guest's command says.
	marker = "the command is running"
	// bootLimit is when a boot is given up.
	bootLimit = time.Minute
	// peersInit is /init for the others: the command alone, with nothing to set up for it.
	peersInit = "#!/bin/busybox sh\necho " + marker + "\n"
	// peersMemory is what each guest gets, as those that are compared take it.
	peersMemory = "512M"
)

// kvmBoots compares how long it takes from a process's start to the first output of a command in its
// Linux guest: ours, gokvm's boot and QEMU's microvm, in turns, with the same kernel, memory and
// command line.
func kvmBoots(args []string) error {
	f := flag.NewFlagSet("kvm", flag.ExitOnError)
	kernel := f.String("kernel", "", "a bzImage")
	vmm := f.String("vmm", "", "ktstr-vmm")
	gokvm := f.String("gokvm", "", "gokvm, built from its module")
	microvm := f.String("qemu", "", "QEMU's microvm and where its data is, as words")
	rounds := f.Int("rounds", 5, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	g := linuxGuest{board: x86.Board{}, vmm: *vmm, kernel: *kernel}
	initrd, err := g.peersInitrd("while :; do /bin/busybox sleep 1000; done")
	if err != nil {
		return err
	}
	defer os.Remove(initrd)
	ours := g.ours(accel.KVM, "busybox", "echo", marker)
	theirs := append(strings.Fields(*microvm), "-M", "microvm,pit=off,pic=off,rtc=off", "-accel", "kvm", "-cpu", "host")
	peers := []struct {
		name    string
		command []string
	}{
		{"gokvm boot", []string{*gokvm, "boot", "-k", *kernel, "-i", initrd, "-m", peersMemory, "-p",
			linux.Cmdline(g.board.Arch())}},
		{"qemu microvm", append(theirs, g.peers(initrd)...)},
	}
	if *microvm == "" {
		left("qemu microvm", qemu.ErrNotInstalled)
		peers = peers[:1]
	}
	took := make([][]time.Duration, len(peers))
	var own []time.Duration
	given := make([]error, len(peers))
	for range *rounds {
		d, err := untilOutput(ours)
		if err != nil {
			return err
		}
		own = append(own, d)
		for i, p := range peers {
			if given[i] != nil {
				continue
			}
			if d, err = untilOutput(p.command); err != nil {
				given[i] = err
				continue
			}
			took[i] = append(took[i], d)
		}
	}
	figure("ktstr-vmm run", show(own))
	for i, p := range peers {
		if given[i] != nil {
			fmt.Printf("%-55s does not get there: %v\n", p.name, given[i])
			continue
		}
		r := ratio(own, took[i])
		figure(p.name, show(took[i]))
		goal("ours to "+p.name, fmt.Sprintf("%.2f", r), "≤ 0.9", r <= 0.9)
	}
	return errors.Join(g.parts(kvm.Backend{}), schedulerEnd(*kernel))
}

// linuxGuest is what both ours and the others boot.
type linuxGuest struct {
	board   vm.Board
	vmm     string // ours
	kernel  string
	sysroot string // where its programs are; "": they are this host's
	self    string // this program, for the guest
}

// ours is the program with a command in a Linux guest.
func (g linuxGuest) ours(mode accel.Mode, command ...string) []string {
	ours := []string{g.vmm, "run", "--accel", string(mode), "--kernel", g.kernel, "--memory", peersMemory}
	if g.sysroot != "" {
		ours = append(ours, "--sysroot", g.sysroot)
	}
	return append(append(ours, "--"), command...)
}

// peers is what QEMU's own machine runs and how, whoever runs its instructions.
func (g linuxGuest) peers(initrd string) []string {
	return []string{"-m", peersMemory, "-kernel", g.kernel, "-initrd", initrd, "-append", linux.Cmdline(g.board.Arch()),
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"}
}

// schedulerEnd measures from a scheduler's last words, on the console, to the end of the run.
func schedulerEnd(kernel string) error {
	const lastWords = "the scheduler is gone"
	cfg, files, err := linux.Guest{
		Kernel: kernel, Command: []string{"busybox", "sleep", "60"},
		Scheduler: []string{"busybox", "sh", "-c", "busybox sleep 1; echo " + lastWords},
	}.Config()
	if err != nil {
		return err
	}
	defer files.Close()
	cfg.Backend = kvm.Backend{}
	console := &waiting{text: lastWords}
	cfg.Console = console
	r := run.Run(context.Background(), run.Config{VM: cfg, Timeout: bootLimit})
	if r.Outcome != run.SchedulerGone || console.at.IsZero() {
		return fmt.Errorf("%v: %s", r.Outcome, r.Reason)
	}
	took := time.Since(console.at)
	goal("the scheduler's end to the end of the run", took.Round(time.Millisecond).String(), "≤ 1.5s",
		took <= 1500*time.Millisecond)
	return nil
}

// waiting notes when a text was written to it.
type waiting struct {
	text string
	said []byte
	at   time.Time
}

func (w *waiting) Write(p []byte) (int, error) {
	w.said = append(w.said, p...)
	if w.at.IsZero() && bytes.Contains(w.said, []byte(w.text)) {
		w.at = time.Now()
	}
	return len(p), nil
}

// peersInitrd writes the others' initramfs to a file, to be removed. Their command goes on with what
// then says.
func (g linuxGuest) peersInitrd(then string) (path string, err error) {
	busybox := filepath.Join(g.sysroot, "bin", "busybox")
	if g.sysroot == "" {
		if busybox, err = initramfs.LookPath("busybox"); err != nil {
			return "", err
		}
	}
	a := initramfs.New()
	if err := a.AddFile(busybox, "/bin/busybox"); err != nil {
		return "", err
	}
	a.AddText("/init", peersInit+then+"\n", 0o755)
	out, err := os.CreateTemp("", "bench-*.cpio")
	if err != nil {
		return "", err
	}
	if _, err = a.WriteTo(out); err != nil {
		return "", errors.Join(err, out.Close(), os.Remove(out.Name()))
	}
	return out.Name(), out.Close()
}

// untilOutput starts a command and returns how long its marker took to come.
func untilOutput(command []string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd.Stdout = w
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start := time.Now()
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, err
	}
	lines := bufio.NewReader(r)
	var said strings.Builder
	for {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if strings.Contains(line, marker) {
			d := time.Since(start)
			cancel()
			_, _ = io.Copy(io.Discard, r)
			_ = cmd.Wait() // it was killed
			return d, nil
		}
		if err != nil {
			_ = cmd.Wait()
			text := said.String() + stderr.String()
			return 0, fmt.Errorf("%w after %v: …%s", err, time.Since(start).Round(time.Millisecond),
				text[max(0, len(text)-1000):])
		}
	}
}

// parts says where our time goes, from one run in this process.
func (g linuxGuest) parts(b vm.Backend) error {
	var described, built, agent, output, exit time.Duration
	start := time.Now()
	if err := exec.Command(g.vmm, "version").Run(); err != nil {
		return fmt.Errorf("%s version: %w", g.vmm, err)
	}
	process := time.Since(start)
	start = time.Now()
	cfg, files, err := linux.Guest{
		Kernel: g.kernel, Sysroot: g.sysroot, Command: []string{"busybox", "echo", marker},
	}.Config()
	if err != nil {
		return err
	}
	defer files.Close()
	cfg.Backend = b
	described = time.Since(start)
	r := run.Run(context.Background(), run.Config{
		VM:      cfg,
		Timeout: bootLimit,
		OnStart: func() { built = time.Since(start) },
		OnMessage: func(_ time.Duration, m shm.Message) monitor.Verdict {
			switch m.Type {
			case shm.ScenarioStart:
				agent = time.Since(start)
			case shm.Stdout:
				output = time.Since(start)
			case shm.Exit:
				exit = time.Since(start)
			}
			return monitor.Continue
		},
	})
	ended := time.Since(start)
	if r.Outcome != run.Exited || output == 0 {
		return fmt.Errorf("%v: %s", r.Outcome, r.Reason)
	}
	fmt.Printf("\nparts of a run of ours:\n")
	part := func(name string, took time.Duration) {
		fmt.Printf("  %-53s %v\n", name, took.Round(10*time.Microsecond))
	}
	part("the program's own start and end", process)
	before := time.Duration(0)
	for _, p := range []struct {
		name string
		at   time.Duration
	}{
		{"initramfs: what is in it", described},
		{"load: machine, kernel and initramfs in RAM", built},
		{"wait, up to the guest's first instruction", r.StartedAt.Sub(start) + r.FirstExit},
		{"kernel, up to the agent's first message", agent},
		{"agent, up to the command's first output", output},
		{"command, up to EXIT", exit},
		{"stop, and all that is given back", ended},
	} {
		part(p.name, max(0, p.at-before)) // an emulator may run before all is loaded
		before = max(p.at, before)
	}
	return nil
}
