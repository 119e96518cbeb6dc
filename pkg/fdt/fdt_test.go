package fdt_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

var update = flag.Bool("update", false, "write what the golden .dtb files should be")

// machines are those of the golden files, by the files' names.
func machines() map[string]fdt.Machine {
	return map[string]fdt.Machine{
		"qemu": { // QEMU's virt, with all that there can be
			RAM:      []fdt.Range{{Start: 0x40000000, Size: 0x1f000000}},
			Ring:     fdt.Range{Start: 0x5f000000, Size: 0x1000000},
			Topology: topology.OfCores(2),
			Devices:  qemuDevices,

			Bootargs:  `KTSTR_SHM_BASE=0x5f000000 KTSTR_SHM_SIZE=0x1000000 console=ttyAMA0 -- "a b"`,
			Initrd:    fdt.Range{Start: 0x48000000, Size: 0x123457},
			RNGSeed:   []byte("\x00\x01\x02\x03\xfc\xfd\xfe\xff and more"),
			KASLRSeed: 0x123456789abcdef0,
		},
		"other": { // other places, and as little as there can be
			RAM:         []fdt.Range{{Start: 0x80000000, Size: 0x1000}, {Start: 0x100000000, Size: 0x23fff0000}},
			Ring:        fdt.Range{Start: 0x33fff0000, Size: 0x10000},
			Reservation: fdt.Cacheable,
			Topology: topology.Topology{Dies: 3, Cores: 3, Threads: 2, Nodes: 3,
				Distances: [][]uint8{{10, 20, 30}, {21, 10, 255}, {11, 40, 10}}},
			Nodes: [][]fdt.Range{
				{{Start: 0x80000000, Size: 0x1000}, {Start: 0x100000000, Size: 0x80000000}},
				{{Start: 0x180000000, Size: 0x100000000}},
				{{Start: 0x280000000, Size: 0xbfff0000}, {Start: 0x33fff0000, Size: 0x10000}},
			},
			Devices: fdt.Devices{
				Distributor:    fdt.Range{Start: 0x3fff0000, Size: 0x10000},
				Redistributors: fdt.Range{Start: 0x3fdb0000, Size: 18 * fdt.RedistributorSize},
				UART:           fdt.Range{Start: 0x40_0000_0000, Size: 0x1000},
				UARTInterrupt:  987,
				UARTClock:      1,
				Timer:          fdt.Timer{Secure: 0, Physical: 1, Virtual: 2, Hypervisor: 15},
			},
		},
	}
}

var qemuDevices = fdt.Devices{
	Distributor:    fdt.Range{Start: 0x08000000, Size: 0x10000},
	Redistributors: fdt.Range{Start: 0x080a0000, Size: 0xf60000},
	UART:           fdt.Range{Start: 0x09000000, Size: 0x1000},
	UARTInterrupt:  1,
	UARTClock:      24000000,
	Timer:          fdt.Timer{Secure: 13, Physical: 14, Virtual: 11, Hypervisor: 10},
}

// encode is Encode for what must not fail.
func encode(t testing.TB, m fdt.Machine) []byte {
	t.Helper()
	tree, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestGolden(t *testing.T) {
	for name, m := range machines() {
		file, got := filepath.Join("testdata", name+".dtb"), encode(t, m)
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the tree has other bytes than %s; if it should, look at the .dts, and go test -update", name, file)
		}
	}
}

func TestDecodesWhatItEncodes(t *testing.T) {
	want := map[string]fdt.Memory{
		"qemu": {
			RAM:      []fdt.Range{{Start: 0x40000000, Size: 0x20000000}},
			Reserved: []fdt.Reserved{{Name: "shm@5f000000", Range: fdt.Range{Start: 0x5f000000, Size: 0x1000000}, NoMap: true}},
		},
		"other": {
			RAM: []fdt.Range{{Start: 0x80000000, Size: 0x1000}, {Start: 0x100000000, Size: 0x80000000},
				{Start: 0x180000000, Size: 0x100000000}, {Start: 0x280000000, Size: 0xc0000000}},
			Reserved:   []fdt.Reserved{{Name: "shm@33fff0000", Range: fdt.Range{Start: 0x33fff0000, Size: 0x10000}}},
			MemReserve: []fdt.Range{{Start: 0x33fff0000, Size: 0x10000}},
		},
	}
	for name, m := range machines() {
		f, err := os.Open(filepath.Join("testdata", name+".dtb"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := fdt.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want[name], got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if ring, err := got.Ring(); err != nil || ring != m.Ring {
			t.Errorf("%s: the ring is %v, %v; want %v", name, ring, err, m.Ring)
		}
	}
}

func TestRing(t *testing.T) {
	ring := fdt.Reserved{Name: "shm@1000", Range: fdt.Range{Start: 0x1000, Size: 0x2000}}
	other := fdt.Reserved{Name: "shmem@9000", Range: fdt.Range{Start: 0x9000, Size: 0x1000}}
	for _, tc := range []struct {
		reserved []fdt.Reserved
		want     error
	}{
		{nil, fdt.ErrNoRing},
		{[]fdt.Reserved{other}, fdt.ErrNoRing},
		{[]fdt.Reserved{ring, ring}, fdt.ErrNoRing},
		{[]fdt.Reserved{other, ring}, nil},
	} {
		got, err := fdt.Memory{Reserved: tc.reserved}.Ring()
		if !errors.Is(err, tc.want) || err == nil && got != ring.Range {
			t.Errorf("%v: %v, %v; want %v", tc.reserved, got, err, tc.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	const top = 1<<64 - fdt.PageSize
	for _, tc := range []struct {
		name   string
		change func(*fdt.Machine)
		want   error
	}{
		{"no RAM", func(m *fdt.Machine) { m.RAM = nil }, fdt.ErrMemory},
		{"empty RAM", func(m *fdt.Machine) { m.RAM[0].Size = 0 }, fdt.ErrMemory},
		{"RAM that begins in a page", func(m *fdt.Machine) { m.RAM[0].Start++ }, fdt.ErrMemory},
		{"RAM that ends in a page", func(m *fdt.Machine) { m.RAM[0].Size-- }, fdt.ErrMemory},
		{"RAM up to the last address",
			func(m *fdt.Machine) { m.RAM[0] = fdt.Range{Start: top, Size: fdt.PageSize} }, fdt.ErrMemory},
		{"RAM over the last address", func(m *fdt.Machine) { m.RAM[0].Size = top }, fdt.ErrMemory},
		{"no ring", func(m *fdt.Machine) { m.Ring.Size = 0 }, fdt.ErrMemory},
		{"ring in RAM", func(m *fdt.Machine) { m.Ring.Start -= fdt.PageSize }, fdt.ErrMemory},
		{"ring below RAM", func(m *fdt.Machine) { m.Ring.Start = 0x1000000 }, fdt.ErrMemory},
		{"RAM that is not sorted", func(m *fdt.Machine) {
			m.RAM = append(m.RAM, fdt.Range{Start: 0x20000000, Size: fdt.PageSize})
		}, fdt.ErrMemory},
		{"initrd below RAM", func(m *fdt.Machine) { m.Initrd.Start = 0x3fffffff }, fdt.ErrMemory},
		{"initrd that ends in the ring", func(m *fdt.Machine) { m.Initrd.Size = 0x1f000001 - 0x8000000 }, fdt.ErrMemory},
		{"initrd over the last address", func(m *fdt.Machine) { m.Initrd.Size = top }, fdt.ErrMemory},
		{"fewer than no processors", func(m *fdt.Machine) { m.Topology = topology.OfCores(-1) }, fdt.ErrCPUs},
		{"more processors than redistributors", func(m *fdt.Machine) { m.Topology = topology.OfCores(124) }, fdt.ErrCPUs},
		{"threads", func(m *fdt.Machine) { m.Topology.Threads = 3 }, fdt.ErrCPUs},
		{"a node without memory", func(m *fdt.Machine) { m.Topology.Nodes = 1 }, fdt.ErrMemory},
		{"a node with other memory", func(m *fdt.Machine) {
			m.Topology.Nodes, m.Nodes = 1, [][]fdt.Range{m.RAM}
		}, fdt.ErrMemory},
		{"more processors than a GIC serves", func(m *fdt.Machine) {
			m.Devices.Redistributors = fdt.Range{Start: 1 << 40, Size: 1 << 40}
			m.Topology = topology.OfCores(513)
		}, fdt.ErrCPUs},
		{"no distributor", func(m *fdt.Machine) { m.Devices.Distributor.Size = 0 }, fdt.ErrDevice},
		{"redistributors over the last address", func(m *fdt.Machine) { m.Devices.Redistributors.Size = top }, fdt.ErrDevice},
		{"UART in RAM", func(m *fdt.Machine) { m.Devices.UART.Start = 0x40000000 }, fdt.ErrDevice},
		{"UART in the ring", func(m *fdt.Machine) { m.Devices.UART.Start = 0x5f000000 }, fdt.ErrDevice},
		{"UART in the redistributors", func(m *fdt.Machine) { m.Devices.UART.Start = 0x080a0000 }, fdt.ErrDevice},
		{"SPI", func(m *fdt.Machine) { m.Devices.UARTInterrupt = 988 }, fdt.ErrDevice},
		{"no clock", func(m *fdt.Machine) { m.Devices.UARTClock = 0 }, fdt.ErrDevice},
		{"PPI", func(m *fdt.Machine) { m.Devices.Timer.Virtual = 16 }, fdt.ErrDevice},
		{"long command line", func(m *fdt.Machine) { m.Bootargs = strings.Repeat("a", fdt.MaxBootargs+1) }, fdt.ErrBootargs},
		{"NUL in it", func(m *fdt.Machine) { m.Bootargs = "a\x00b" }, fdt.ErrBootargs},
		{"newline in it", func(m *fdt.Machine) { m.Bootargs = "a\nb" }, fdt.ErrBootargs},
		{"long seed", func(m *fdt.Machine) { m.RNGSeed = make([]byte, fdt.MaxSize) }, fdt.ErrSize},
	} {
		m := machines()["qemu"]
		tc.change(&m)
		if tree, err := m.Encode(); !errors.Is(err, tc.want) || tree != nil {
			t.Errorf("%s: %d bytes, %v; want %v", tc.name, len(tree), err, tc.want)
		}
	}
}

// What is at a limit is within it.
func TestLimits(t *testing.T) {
	m := machines()["qemu"]
	m.Topology = topology.OfCores(123)
	m.Bootargs = strings.Repeat("a", fdt.MaxBootargs)
	m.Initrd = fdt.Range{Start: 0x40000000, Size: 0x1f000000}
	encode(t, m)
	m.Devices.Redistributors = fdt.Range{Start: 1 << 40, Size: 1 << 40}
	m.Topology = topology.OfCores(fdt.MaxCPUs)
	encode(t, m)
}
