package main

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

func demoCommand() *cobra.Command {
	o := newOptions(config.Demo)
	c := &cobra.Command{
		Use:   "demo",
		Short: "Boot the embedded guest and show what its ring carries",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.load(); err != nil {
				return err
			}
			cmdline, name, err := guest.ParseScenario(o.Scenario)
			if err != nil {
				return err
			}
			image, err := guest.Demo(o.Arch)
			if err != nil {
				return err
			}
			machine := func(func(string, ...any)) (vm.Config, io.Closer, error) {
				loader, err := kernel.Open(bytes.NewReader(image), kernel.Options{})
				return vm.Config{Kernel: loader, Cmdline: cmdline}, io.NopCloser(nil), err
			}
			return o.run(c, run.Config{Name: "demo", KernelName: "demo:" + name, Drive: drivers[name]}, machine)
		},
	}
	o.register(c)
	return c
}

// drivers play the host's part in the scenarios that wait for it.
var drivers = map[string]func(context.Context, shm.Control) error{
	"signals": func(ctx context.Context, c shm.Control) error {
		if _, err := c.WaitFor(ctx, shm.SlotGuest); err != nil {
			return err
		}
		return c.Signal(shm.SlotHost, shm.SignalGo)
	},
	"stall": func(ctx context.Context, c shm.Control) error {
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // long enough to see the guest wait
			c.RequestStall()
		}
		return nil
	},
}
