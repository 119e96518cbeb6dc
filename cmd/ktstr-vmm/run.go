package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

func runCommand() *cobra.Command {
	var o options
	var g linux.Guest
	var scheduler, reserve string
	var dumps dumpFlags
	c := &cobra.Command{
		Use:   "run --kernel FILE|DIR [flags] -- CMD [ARG...]",
		Short: "Boot a Linux kernel and run a command in it",
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if g.Kernel == "" {
				return errors.New("--kernel is needed: " + kernelIs)
			}
			var ok bool
			if g.Reservation, ok = reservations[reserve]; !ok {
				return fmt.Errorf("--shm-reserve %q: it is one of no-map, cacheable", reserve)
			}
			if c.Flags().Changed("scheduler") && strings.TrimSpace(scheduler) == "" {
				return fmt.Errorf("--scheduler %q: it is a program and its arguments", scheduler)
			}
			if g.SchedulerWait < time.Millisecond || g.SchedulerWait > maxWait {
				return fmt.Errorf("--scheduler-wait %v: it can be %v to %v", g.SchedulerWait, time.Millisecond, maxWait)
			}
			when, err := dumps.check(scheduler != "" || c.Flags().Changed("dump-on"))
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return errors.New("run takes a command behind --")
			}
			if c.ArgsLenAtDash() != 0 {
				return fmt.Errorf("%q is neither a flag nor behind --, where run takes its command", args[0])
			}
			g.Command, g.Scheduler, g.Verbose = args, strings.Fields(scheduler), o.verbose
			g.OneOutput = sameFile(c.OutOrStdout(), c.ErrOrStderr())
			o.linux = true
			return o.run(c, run.Config{Name: g.Name(), KernelName: kernelName(g.Kernel), Dumps: when, Symbols: g.Symbols},
				func(say func(string, ...any)) (vm.Config, io.Closer, error) {
					g.OnSkip = func(s initramfs.Skipped) { say("left out of the guest: %q, %s", s.Path, s.Kind()) }
					cfg, files, err := g.Config()
					err = byFlag(err)
					if g.Sysroot == "" && (errors.Is(err, initramfs.ErrForeign) || errors.Is(err, initramfs.ErrLibrary)) {
						err = fmt.Errorf("%w; --sysroot DIR names a folder that has what the program needs", err)
					}
					return cfg, files, err
				})
		},
	}
	f := c.Flags()
	f.StringVar(&g.Kernel, "kernel", "", "the kernel: "+kernelIs)
	f.StringArrayVar(&g.Modules, "module", nil,
		"'NAME [PARAM=VALUE...]', a module of the kernel's to load, after what it needs; from DIR, or beside FILE")
	f.StringVar(&g.Initrd, "initrd", "", "an initramfs to put below what is made for the command")
	f.StringVar(&g.Append, "append", "", "what to add to the kernel's command line")
	f.StringVar(&g.CmdlineOnly, "cmdline-only", "", "all of it, but for the ring's parameters")
	f.StringVar(&g.Sysroot, "sysroot", "",
		"a folder in which the programs and what they need are looked up, as for another architecture")
	f.StringArrayVar(&g.Include, "include", nil, "SRC[:DST], a file or a folder that the guest gets")
	f.StringVar(&scheduler, "scheduler", "",
		"'PATH ARG...', the scheduler under test: started before the command, and watched")
	f.DurationVar(&g.SchedulerWait, "scheduler-wait", 10*time.Second,
		"how long it may take to become the scheduler, before the command starts")
	dumps.register(c)
	f.StringArrayVar(&g.Env, "env", nil, "NAME=VALUE, in the command's environment")
	f.StringVar(&reserve, "shm-reserve", "no-map", "how an arm64 kernel is kept off the ring: no-map, for every kernel; "+
		"cacheable, faster, for one without STRICT_DEVMEM")
	f.BoolVar(&g.TTY, "tty", false, "give the command a terminal; all of its output comes on stdout then")
	f.StringVar(&o.console, "console", "", "file for the guest's console as it is, - for stdout")
	o.consoleLimit = defaultConsoleLimit
	f.Var(&o.consoleLimit, "console-limit", "how much of it --console takes")
	f.BoolVar(&o.verbose, "verbose", false,
		"show the guest's console on stderr, control characters made visible, and let its kernel say more")
	o.register(c)
	return c
}

const kernelIs = "a bzImage, a vmlinux or an arm64 Image, or the folder of one: a build tree or an unpacked package"

// maxWait bounds --scheduler-wait.
const maxWait = 24 * time.Hour

// reservations are the values of --shm-reserve.
var reservations = map[string]fdt.Reservation{"no-map": fdt.NoMap, "cacheable": fdt.Cacheable}

// kernelName is what reports call a kernel: its file, or its folder, which may be "." to its user.
func kernelName(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return filepath.Base(path)
}

// guestFlags are the flags that set a guest's fields.
var guestFlags = map[string]string{
	"Kernel": "--kernel", "Initrd": "--initrd", "Include": "--include", "Env": "--env", "Scheduler": "--scheduler",
	"Sysroot": "--sysroot", "Modules": "--module",
}

// byFlag puts the flag in the place of the field that an error names. The command has none.
func byFlag(err error) error {
	var field *linux.FieldError
	if !errors.As(err, &field) {
		return err
	}
	flag, ok := guestFlags[field.Field]
	if !ok {
		return field.Err
	}
	return &linux.FieldError{Field: flag, Value: field.Value, Err: field.Err}
}

// sameFile reports whether both are one file, pipe or terminal, where a reader sees their order.
func sameFile(a, b io.Writer) bool {
	fa, ok := a.(*os.File)
	fb, okb := b.(*os.File)
	if !ok || !okb {
		return false
	}
	ia, err := fa.Stat()
	ib, errb := fb.Stat()
	return err == nil && errb == nil && os.SameFile(ia, ib)
}
