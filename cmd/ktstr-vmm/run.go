package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/agent"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// linuxCmdline is what a Linux guest gets beside the ring's parameters: a console, a reset that
// the host sees, and nothing that waits for hardware which is not there.
const linuxCmdline = "console=ttyS0 quiet rdinit=/init reboot=k panic=-1 oops=panic nokaslr mitigations=off no_timer_check " +
	"random.trust_cpu=on pci=off iomem=relaxed cryptomgr.notests"

// guestPath is PATH in the guest.
const guestPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// linuxOptions are the flags that only a Linux guest has.
type linuxOptions struct {
	kernel, initrd string
	append         string
	cmdlineOnly    string
	include, env   []string
	scheduler      string
}

func runCommand() *cobra.Command {
	var o options
	var l linuxOptions
	c := &cobra.Command{
		Use:   "run --kernel FILE [flags] -- CMD [ARG...]",
		Short: "Boot a Linux kernel and run a command in it",
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if l.kernel == "" {
				return fmt.Errorf("--kernel is needed: a bzImage or a vmlinux")
			}
			if len(args) == 0 {
				return fmt.Errorf("run takes a command behind --")
			}
			kernel, err := os.Open(l.kernel)
			if err != nil {
				return fmt.Errorf("--kernel: %w", err)
			}
			defer kernel.Close()
			loader, err := vm.OpenKernel(kernel)
			if err != nil {
				return fmt.Errorf("--kernel %s: %w", l.kernel, err)
			}
			archive, err := l.archive(args)
			if err != nil {
				return err
			}
			cmdline := strings.TrimSpace(linuxCmdline + " " + l.append)
			if l.cmdlineOnly != "" {
				cmdline = l.cmdlineOnly
			}
			o.passOutput = true
			return o.run(c, run.Config{
				VM:         vm.Config{Kernel: loader, Initrd: archive, Cmdline: cmdline, DropLateTicks: true},
				KernelName: filepath.Base(l.kernel),
			})
		},
	}
	f := c.Flags()
	f.StringVar(&l.kernel, "kernel", "", "the kernel: a bzImage or a vmlinux")
	f.StringVar(&l.initrd, "initrd", "", "an initramfs to put below what is made for the command")
	f.StringVar(&l.append, "append", "", "what to add to the kernel's command line")
	f.StringVar(&l.cmdlineOnly, "cmdline-only", "", "all of it, but for the ring's parameters")
	f.StringArrayVar(&l.include, "include", nil, "SRC[:DST], a file or a folder that the guest gets")
	f.StringVar(&l.scheduler, "scheduler", "", "'PATH ARG...', the scheduler under test: started before the command, and watched")
	f.StringArrayVar(&l.env, "env", nil, "NAME=VALUE, in the command's environment")
	o.register(c)
	return c
}

// archive is the guest's initramfs: this program as /init, the command and what it needs.
func (l *linuxOptions) archive(args []string) (*initramfs.Archive, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	a := initramfs.New()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := a.AddInit(self); err != nil {
		return nil, err
	}
	program, err := addCommand(a, args[0])
	if err != nil {
		return nil, err
	}
	scheduler := strings.Fields(l.scheduler)
	if len(scheduler) > 0 {
		if scheduler[0], err = addCommand(a, scheduler[0]); err != nil {
			return nil, fmt.Errorf("--scheduler: %w", err)
		}
	}
	for _, include := range l.include {
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
	env := []string{"PATH=" + guestPath, "HOME=/root", "TERM=" + os.Getenv("TERM")}
	for _, e := range l.env {
		if !strings.Contains(e, "=") {
			return nil, fmt.Errorf("--env %q: it is NAME=VALUE", e)
		}
		env = append(env, e)
	}
	spec, err := agent.Spec{Args: append([]string{program}, args[1:]...), Env: env, Dir: dir, Scheduler: scheduler}.Encode()
	if err != nil {
		return nil, err
	}
	a.AddText(agent.SpecPath, string(spec), 0o644)
	if l.initrd != "" {
		f, err := os.Open(l.initrd)
		if err != nil {
			return nil, fmt.Errorf("--initrd: %w", err)
		}
		info, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("--initrd: %w", err)
		}
		a.SetBase(f, uint64(info.Size()))
	}
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
