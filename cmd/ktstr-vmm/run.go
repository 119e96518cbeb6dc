package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

func runCommand() *cobra.Command {
	o := newOptions(config.Run)
	c := &cobra.Command{
		Use:   "run --kernel FILE|DIR [flags] -- CMD [ARG...]",
		Short: "Boot a Linux kernel and run a command in it",
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.load(); err != nil {
				return err
			}
			if o.Kernel == "" {
				return o.Require("kernel", config.KernelIs)
			}
			if len(args) > 0 && c.ArgsLenAtDash() != 0 {
				return fmt.Errorf("%q is neither a flag nor behind --, where run takes its command", args[0])
			}
			if len(args) > 0 {
				o.Command = args
			}
			if len(o.Command) == 0 {
				return errors.New("run takes a command behind --")
			}
			var err error
			if o.input, err = openInput(c.InOrStdin(), o.Settings); err != nil {
				return err
			}
			if o.input.readsTerminal() {
				o.AtTerminal()
			}
			g := o.guest()
			if o.input.keys {
				g.Window = linux.Window(windowSize(o.input.terminal))
			}
			g.OneOutput = sameFile(c.OutOrStdout(), c.ErrOrStderr())
			cfg := run.Config{Name: g.Name(), KernelName: kernelName(g.Kernel), Dumps: o.Dumps, Symbols: g.Symbols}
			return o.run(c, cfg, func(say func(string, ...any)) (vm.Config, io.Closer, error) { return o.machine(g, say) })
		},
	}
	o.register(c)
	return c
}

// guest is the Linux guest that the settings describe.
func (o *options) guest() *linux.Guest {
	return &linux.Guest{
		Kernel: o.Kernel, Initrd: o.Initrd, Sysroot: o.Sysroot, Modules: o.Modules, Include: o.Include, Env: o.Env,
		Append: o.Append, CmdlineOnly: o.CmdlineOnly, Reservation: reservations[o.ShmReserve],
		Scheduler: strings.Fields(o.Scheduler), SchedulerWait: o.SchedulerWait,
		Command: o.Command, TTY: o.TTY, Verbose: o.Verbose, Stdin: o.input.given(),
		Prompt: o.ShellOnFailure && o.input.terminal != nil,
	}
}

// machine makes a guest's machine, and says what it leaves out.
func (o *options) machine(g *linux.Guest, say func(string, ...any)) (vm.Config, io.Closer, error) {
	g.OnLeftOut = func(what string) { say("left out of the guest: %s", what) }
	cfg, files, err := g.Config()
	err = o.bySetting(err)
	if g.Sysroot == "" && (errors.Is(err, initramfs.ErrForeign) || errors.Is(err, initramfs.ErrLibrary)) {
		err = fmt.Errorf("%w; --sysroot DIR names a folder that has what the program needs", err)
	}
	return cfg, files, err
}

// reservations are the values of --shm-reserve.
var reservations = map[string]fdt.Reservation{"no-map": fdt.NoMap, "cacheable": fdt.Cacheable}

// kernelName is what reports call a kernel: its file, or its folder, which may be "." to its user.
func kernelName(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return filepath.Base(path)
}

// guestSettings are the settings that are a guest's fields.
var guestSettings = map[string]string{
	"Kernel": "kernel", "Initrd": "initrd", "Include": "include", "Env": "env", "Scheduler": "scheduler",
	"Sysroot": "sysroot", "Modules": "module", "Prompt": "shell-on-failure",
}

// bySetting puts the setting in the place of the field that an error names. The command has none.
func (o *options) bySetting(err error) error {
	var field *linux.FieldError
	if !errors.As(err, &field) {
		return err
	}
	key, ok := guestSettings[field.Field]
	if !ok {
		return field.Err
	}
	return &linux.FieldError{Field: o.Lookup(key).Source, Value: field.Value, Err: field.Err}
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
