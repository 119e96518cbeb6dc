package fdt_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// output runs a program that must have nothing to complain of.
func output(t testing.TB, input []byte, name string, args ...string) string {
	t.Helper()
	out, complaints, err := try(input, name, args...)
	if err != nil || complaints != "" {
		t.Fatalf("%s %s: %v\n%s", name, args, err, complaints)
	}
	return out
}

func try(input []byte, name string, args ...string) (out, complaints string, err error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// dtc has no warning of a tree, and it is the same tree as the one that was written by hand.
func TestTreesAreGoodForDTC(t *testing.T) {
	dtc := testenv.Tool(t, "dtc")
	for name, m := range machines() {
		byHand := output(t, nil, dtc, "-I", "dts", "-O", "dtb", filepath.Join("testdata", name+".dts"))
		want := output(t, []byte(byHand), dtc, "-I", "dtb", "-O", "dts")
		if diff := cmp.Diff(want, output(t, encode(t, m), dtc, "-I", "dtb", "-O", "dts")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Every property that a machine's tree has, as fdtget reads it by the type that is before it.
var properties = map[string]map[string]string{
	"/": {
		"compatible":       "s linux,dummy-virt",
		"model":            "s ktstr-vmm",
		"#address-cells":   "x 2",
		"#size-cells":      "x 2",
		"interrupt-parent": "x 1",
	},
	"/chosen": {
		"bootargs":           `s KTSTR_SHM_BASE=0x5f000000 KTSTR_SHM_SIZE=0x1000000 console=ttyAMA0 -- "a b"`,
		"stdout-path":        "s /serial@9000000",
		"linux,initrd-start": "x 0 48000000",
		"linux,initrd-end":   "x 0 48123457",
		"rng-seed":           "bx 0 1 2 3 fc fd fe ff 20 61 6e 64 20 6d 6f 72 65",
		"kaslr-seed":         "x 12345678 9abcdef0",
	},
	"/memory@40000000": {
		"device_type": "s memory",
		"reg":         "x 0 40000000 0 20000000",
	},
	"/reserved-memory": {
		"#address-cells": "x 2",
		"#size-cells":    "x 2",
		"ranges":         "x ",
	},
	"/reserved-memory/shm@5f000000": {
		"reg":    "x 0 5f000000 0 1000000",
		"no-map": "x ",
	},
	"/cpus": {
		"#address-cells": "x 1",
		"#size-cells":    "x 0",
	},
	"/cpus/cpu-map":                        {},
	"/cpus/cpu-map/socket0":                {},
	"/cpus/cpu-map/socket0/cluster0":       {},
	"/cpus/cpu-map/socket0/cluster0/core0": {"cpu": "x 3"},
	"/cpus/cpu-map/socket0/cluster0/core1": {"cpu": "x 4"},
	"/cpus/cpu@0": {
		"device_type":      "s cpu",
		"compatible":       "s arm,armv8",
		"reg":              "x 0",
		"enable-method":    "s psci",
		"next-level-cache": "x 5",
		"phandle":          "x 3",
	},
	"/cpus/cpu@1": {
		"device_type":      "s cpu",
		"compatible":       "s arm,armv8",
		"reg":              "x 1",
		"enable-method":    "s psci",
		"next-level-cache": "x 6",
		"phandle":          "x 4",
	},
	"/cpus/l2-cache0": {
		"compatible":       "s cache",
		"cache-level":      "x 2",
		"cache-unified":    "x ",
		"phandle":          "x 5",
		"next-level-cache": "x 7",
	},
	"/cpus/l2-cache1": {
		"compatible":       "s cache",
		"cache-level":      "x 2",
		"cache-unified":    "x ",
		"phandle":          "x 6",
		"next-level-cache": "x 7",
	},
	"/cpus/l3-cache0": {
		"compatible":    "s cache",
		"cache-level":   "x 3",
		"cache-unified": "x ",
		"phandle":       "x 7",
	},
	"/psci": {
		"compatible": "s arm,psci-1.0 arm,psci-0.2",
		"method":     "s hvc",
	},
	"/timer": {
		"compatible": "s arm,armv8-timer",
		"interrupts": "x 1 d 4 1 e 4 1 b 4 1 a 4",
		"always-on":  "x ",
	},
	"/interrupt-controller@8000000": {
		"compatible":           "s arm,gic-v3",
		"reg":                  "x 0 8000000 0 10000 0 80a0000 0 f60000",
		"interrupt-controller": "x ",
		"#interrupt-cells":     "x 3",
		"#address-cells":       "x 0",
		"phandle":              "x 1",
	},
	"/clock": {
		"compatible":      "s fixed-clock",
		"#clock-cells":    "x 0",
		"clock-frequency": "x 16e3600",
		"phandle":         "x 2",
	},
	"/serial@9000000": {
		"compatible":  "s arm,pl011 arm,primecell",
		"reg":         "x 0 9000000 0 1000",
		"interrupts":  "x 0 1 4",
		"clocks":      "x 2 2",
		"clock-names": "s uartclk apb_pclk",
	},
}

func TestFdtgetReadsEveryProperty(t *testing.T) {
	fdtget := testenv.Tool(t, "fdtget")
	tree := filepath.Join(t.TempDir(), "tree.dtb")
	if err := os.WriteFile(tree, encode(t, machines()["qemu"]), 0o600); err != nil {
		t.Fatal(err)
	}
	get := func(args ...string) string { return output(t, nil, fdtget, args...) }
	got := map[string]map[string]string{}
	for nodes := []string{"/"}; len(nodes) > 0; nodes = nodes[1:] {
		node := nodes[0]
		for _, child := range strings.Fields(get("-l", tree, node)) {
			nodes = append(nodes, strings.TrimSuffix(node, "/")+"/"+child)
		}
		got[node] = map[string]string{}
		for _, property := range strings.Fields(get("-p", tree, node)) {
			kind, _, _ := strings.Cut(properties[node][property], " ")
			if kind == "" {
				kind = "x"
			}
			got[node][property] = fmt.Sprintf("%s %s", kind, strings.TrimSuffix(get("-t", kind, tree, node, property), "\n"))
		}
	}
	if diff := cmp.Diff(properties, got); diff != "" {
		t.Error(diff)
	}
}

// Trees of all sorts of machines are read without a warning.
func TestTreesOfManyMachinesAreGoodForDTC(t *testing.T) {
	dtc := testenv.Tool(t, "dtc")
	m := machines()["qemu"]
	for _, cpus := range []int{1, 16, 17, 123} {
		for _, uart := range []uint64{0, 0x1000, 0x10_0000_0000} {
			for _, args := range []string{"", "\x80\xff", `\"'`, strings.Repeat("a ", 1000)} {
				m.Topology, m.Devices.UART.Start, m.Bootargs = topology.OfCores(cpus), uart, args
				output(t, encode(t, m), dtc, "-I", "dtb", "-O", "dts")
			}
		}
	}
	for _, arranged := range []topology.Topology{
		{Sockets: 3, Dies: 2, Cores: 4, Threads: 2, LLCCores: 2}, {Sockets: 123}, {Cores: 8, Threads: 8},
	} {
		m.Topology = arranged
		output(t, encode(t, m), dtc, "-I", "dtb", "-O", "dts")
	}
	m.RAM = slices.Insert(m.RAM, 0, m.RAM[0])
	m.RAM[0].Start, m.RAM[0].Size = 0x20000000, 0x1000
	output(t, encode(t, m), dtc, "-I", "dtb", "-O", "dts")
}
