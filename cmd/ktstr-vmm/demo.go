package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// The embedded guest's scenarios and their parameters: guest/src/demo.c.
var (
	scenarios = []string{"ok", "fail", "sched-exit", "crash", "hang", "halt", "graceful", "silent",
		"triple-fault", "flood", "overrun", "stall", "signals", "hostile"}
	scenarioParams = []string{"count", "size", "steps", "step_ms", "lie", "exit"}
)

func demoCommand() *cobra.Command {
	var o options
	var scenario, arch string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Boot the embedded guest and show what its ring carries",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			cmdline, name, err := parseScenario(scenario)
			if err != nil {
				return err
			}
			image, err := guest.Demo(arch)
			if err != nil {
				return fmt.Errorf("--arch: %w", err)
			}
			machine := func(func(string, ...any)) (vm.Config, io.Closer, error) {
				loader, err := kernel.Open(bytes.NewReader(image), kernel.Options{})
				return vm.Config{Kernel: loader, Cmdline: cmdline}, io.NopCloser(nil), err
			}
			return o.run(c, run.Config{Name: "demo", KernelName: "demo:" + name, Drive: drivers[name]}, machine)
		},
	}
	c.Flags().StringVar(&scenario, "scenario", "ok",
		"what the guest does, as NAME[,PARAM=VALUE…]: "+strings.Join(scenarios, ", ")+
			"; parameters: "+strings.Join(scenarioParams, ", "))
	c.Flags().StringVar(&arch, "arch", kernel.HostArch(),
		"the guest's architecture: "+strings.Join(guest.Architectures, ", "))
	o.register(c)
	return c
}

// parseScenario turns the flag's value into the guest's command line.
func parseScenario(text string) (cmdline, name string, err error) {
	name, rest, more := strings.Cut(text, ",")
	if !slices.Contains(scenarios, name) {
		return "", "", fmt.Errorf("--scenario %q: it is one of %s", name, strings.Join(scenarios, ", "))
	}
	cmdline = "demo.scenario=" + name
	for more {
		var param string
		param, rest, more = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(param, "=")
		if !slices.Contains(scenarioParams, key) {
			return "", "", fmt.Errorf("--scenario parameter %q: it is one of %s", key, strings.Join(scenarioParams, ", "))
		}
		if value == "" || strings.Trim(value, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || len(value) > 32 {
			return "", "", fmt.Errorf("--scenario parameter %s=%q: a value is up to 32 small letters, digits and dashes", key,
				value)
		}
		cmdline += " demo." + key + "=" + value
	}
	return cmdline, name, nil
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
