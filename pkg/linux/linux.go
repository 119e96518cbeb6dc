// Package linux describes a machine that boots a Linux kernel to run one command: the kernel, an
// initramfs made on the fly with the agent as its first process, and the kernel's command line.
package linux

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/agent"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// Cmdline is what a kernel gets beside the ring's parameters: a console, a reset that the host
// sees, and nothing that waits for hardware which is not there. Linux's
// Documentation/admin-guide/kernel-parameters.txt has what each means.
const Cmdline = "console=ttyS0 quiet rdinit=/init reboot=k panic=-1 oops=panic nokaslr mitigations=off no_timer_check " +
	"random.trust_cpu=on pci=off iomem=relaxed cryptomgr.notests"

// path is PATH in the guest.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Guest is a Linux guest and its command. The zero value of every field but Kernel and Command has
// a meaning.
type Guest struct {
	Kernel  string   // path of a bzImage or a vmlinux
	Command []string // a program, as a shell finds it on this host, and its arguments
	Agent   string   // path of the program that is /init, and calls agent.Main then; "": this one

	Include   []string // SRC or SRC:DST: what the guest gets beside the command
	Env       []string // NAME=VALUE, in the command's environment
	Scheduler []string // the scheduler under test and its arguments; empty: the kernel's own
	TTY       bool     // the command gets a controlling terminal
	OneOutput bool     // the command's stdout and stderr are one, in the order in which it writes
	Verbose   bool     // the kernel says all it has to say
	Initrd    string   // path of an initramfs that lies below what is made here; "": none

	Append      string // what is added to Cmdline
	CmdlineOnly string // what replaces it, and Append; "": nothing
}

// Config returns the machine's configuration, and what is to be closed when the machine is built.
func (g Guest) Config() (cfg vm.Config, files io.Closer, err error) {
	var open closers
	defer func() {
		if err != nil {
			open.Close()
		}
	}()
	if len(g.Command) == 0 {
		return cfg, nil, errors.New("run takes a command behind --")
	}
	kernel, err := os.Open(g.Kernel)
	if err != nil {
		return cfg, nil, fmt.Errorf("--kernel: %w", err)
	}
	open = append(open, kernel)
	cfg.Kernel, err = x86.Open(kernel)
	if err != nil {
		return cfg, nil, fmt.Errorf("--kernel %s: %w", g.Kernel, err)
	}
	archive, err := g.archive()
	if err != nil {
		return cfg, nil, err
	}
	if g.Initrd != "" {
		f, err := os.Open(g.Initrd)
		if err != nil {
			return cfg, nil, fmt.Errorf("--initrd: %w", err)
		}
		open = append(open, f)
		info, err := f.Stat()
		if err != nil {
			return cfg, nil, fmt.Errorf("--initrd: %w", err)
		}
		archive.SetBase(f, uint64(info.Size()))
	}
	cfg.Initrd = archive
	cfg.Cmdline = g.cmdline()
	return cfg, open, nil
}

func (g Guest) cmdline() string {
	if g.CmdlineOnly != "" {
		return g.CmdlineOnly
	}
	words := []string{Cmdline}
	if g.Verbose {
		words = append(words, "loglevel=7")
	}
	if g.Append != "" {
		words = append(words, g.Append)
	}
	return strings.Join(words, " ")
}

type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, f := range c {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// archive is the guest's initramfs.
func (g Guest) archive() (*initramfs.Archive, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	init := g.Agent
	if init == "" {
		if init, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	a := initramfs.New()
	if err := a.AddInit(init); err != nil {
		return nil, err
	}
	program, err := addCommand(a, g.Command[0])
	if err != nil {
		return nil, err
	}
	if data := filepath.Join(dir, "testdata"); isGoTest(program) && isDir(data) {
		if err := a.AddTree(data, data); err != nil {
			return nil, err
		}
	}
	spec := agent.Spec{Args: append([]string{program}, g.Command[1:]...), Dir: dir, TTY: g.TTY, OneOutput: g.OneOutput}
	if len(g.Scheduler) > 0 {
		scheduler, err := addCommand(a, g.Scheduler[0])
		if err != nil {
			return nil, fmt.Errorf("--scheduler: %w", err)
		}
		spec.Scheduler = append([]string{scheduler}, g.Scheduler[1:]...)
	}
	for _, include := range g.Include {
		src, dst, ok := strings.Cut(include, ":")
		if src, err = filepath.Abs(src); err != nil {
			return nil, err
		}
		if !ok {
			dst = src
		}
		if err := a.AddTree(src, dst); err != nil {
			return nil, fmt.Errorf("--include %s: %w", include, err)
		}
	}
	spec.Env = []string{"PATH=" + path, "HOME=/root", "TERM=" + os.Getenv("TERM")}
	for _, e := range g.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return nil, fmt.Errorf("--env %q: it is NAME=VALUE", e)
		}
		spec.Env = append(spec.Env, e)
	}
	text, err := spec.Encode()
	if err != nil {
		return nil, err
	}
	a.AddText(agent.SpecPath, string(text), 0o644)
	return a, nil
}

// addCommand adds a program and returns its path in the guest. One that is not here may be in the
// guest's base or what it includes; where it is not, the guest says so: 127.
func addCommand(a *initramfs.Archive, name string) (string, error) {
	path, err := initramfs.LookPath(name)
	if err != nil {
		return name, nil
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return path, nil
	}
	return path, a.AddProgram(path)
}

// isGoTest reports whether a program is what go test builds: its main package is named so.
func isGoTest(program string) bool {
	info, err := buildinfo.ReadFile(program)
	return err == nil && strings.HasSuffix(info.Path, ".test")
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
