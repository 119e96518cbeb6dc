package fdt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/dt"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// seedLimit is how large a tree is that is worth changing: a mutator copies it every time.
const seedLimit = 2 << 10 // bytes

// FuzzDecode is a file of any bytes: no panic, no more regions than there is room for, and the same memory
// that another reader finds in the tree. That one is only shown what can be read: it believes every length.
func FuzzDecode(f *testing.F) {
	for _, tree := range seeds(f) {
		if len(tree) <= seedLimit {
			f.Add(tree)
		}
	}
	f.Fuzz(func(t *testing.T, tree []byte) {
		got, err := fdt.Decode(tree)
		if err != nil {
			if !errors.Is(err, fdt.ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		if n := len(got.RAM) + len(got.Reserved) + len(got.MemReserve); n > len(tree)/8 {
			t.Fatalf("%d regions in %d bytes", n, len(tree))
		}
		for _, r := range slices.Concat(got.RAM, got.MemReserve, reservedRanges(got)) {
			if r.Size == 0 || r.End() < r.Start {
				t.Fatalf("a region of %v", r)
			}
		}
		other, err := dt.ReadFDT(bytes.NewReader(tree))
		if err != nil {
			return // it wants the blocks in their usual order
		}
		if want := memoryOf(other); !reflect.DeepEqual(want, got) { // which is the faster one
			t.Fatal(cmp.Diff(want, got))
		}
	})
}

func reservedRanges(m fdt.Memory) (ranges []fdt.Range) {
	for _, r := range m.Reserved {
		ranges = append(ranges, r.Range)
	}
	return ranges
}

// FuzzEncode is any machine: what is not refused by one of the package's errors is the same machine when it
// is read again, here and by another reader.
func FuzzEncode(f *testing.F) {
	for _, m := range machines() {
		d := m.Devices
		machine, err := m.Topology.WithDefaults()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.RAM[0].Start, m.RAM[0].Size, m.Ring.Start, m.Ring.Size, m.Reservation == fdt.Cacheable, machine.CPUs(),
			m.Bootargs, m.Initrd.Start, m.Initrd.Size, m.RNGSeed, m.KASLRSeed, d.Distributor.Start,
			d.Redistributors.Start, d.Redistributors.Size, d.UART.Start, d.UARTInterrupt, d.UARTClock, d.Timer.Virtual)
	}
	f.Fuzz(func(t *testing.T, ram, ramSize, ring, ringSize uint64, cacheable bool, cpus int,
		bootargs string, initrd, initrdSize uint64, rng []byte, kaslr, distributor,
		redistributors, redistributorsSize, uart uint64, spi, clock, ppi uint32) {
		m := fdt.Machine{
			RAM: []fdt.Range{{Start: ram, Size: ramSize}}, Ring: fdt.Range{Start: ring, Size: ringSize},
			Topology: topology.OfCores(cpus),
			Bootargs: bootargs, Initrd: fdt.Range{Start: initrd, Size: initrdSize}, RNGSeed: rng, KASLRSeed: kaslr,
			Devices: fdt.Devices{
				Distributor:    fdt.Range{Start: distributor, Size: 0x10000},
				Redistributors: fdt.Range{Start: redistributors, Size: redistributorsSize},
				UART:           fdt.Range{Start: uart, Size: 0x1000}, UARTInterrupt: spi, UARTClock: clock,
				Timer: fdt.Timer{Secure: 13, Physical: 14, Virtual: ppi, Hypervisor: 10},
			},
		}
		if cacheable {
			m.Reservation = fdt.Cacheable
		}
		tree, err := m.Encode()
		if err != nil {
			if !slices.ContainsFunc(refusals, func(e error) bool { return errors.Is(err, e) }) {
				t.Fatal(err)
			}
			return
		}
		checkEncoded(t, m, tree)
	})
}

var refusals = []error{fdt.ErrMemory, fdt.ErrCPUs, fdt.ErrDevice, fdt.ErrBootargs, fdt.ErrSize}

func checkEncoded(t *testing.T, m fdt.Machine, tree []byte) {
	t.Helper()
	got, err := fdt.Decode(tree)
	if err != nil {
		t.Fatal(err)
	}
	want := fdt.Memory{
		RAM:      []fdt.Range{m.RAM[0], m.Ring},
		Reserved: []fdt.Reserved{{Name: fmt.Sprintf("shm@%x", m.Ring.Start), Range: m.Ring}},
	}
	want.Reserved[0].NoMap = m.Reservation == fdt.NoMap
	if m.RAM[0].End() == m.Ring.Start {
		want.RAM = []fdt.Range{{Start: m.RAM[0].Start, Size: m.RAM[0].Size + m.Ring.Size}}
	}
	if m.Reservation == fdt.Cacheable {
		want.MemReserve = []fdt.Range{m.Ring}
	}
	if !reflect.DeepEqual(want, got) {
		t.Fatal(cmp.Diff(want, got))
	}
	other, err := dt.ReadFDT(bytes.NewReader(tree))
	if err != nil {
		t.Fatal(err)
	}
	chosen, _ := other.NodeByName("chosen")
	if p, ok := chosen.LookProperty("bootargs"); !ok || string(p.Value) != m.Bootargs+"\x00" {
		t.Fatalf("command line %q is %q", m.Bootargs, p.Value)
	}
	cpus, _ := other.NodeByName("cpus")
	// beside the processors: the map, a second level of cache each, and one of the last
	if n := m.Topology.CPUs(); len(cpus.Children) != 2*n+2 {
		t.Fatalf("%d nodes for %d processors", len(cpus.Children), n)
	}
}

// seeds are trees that can be read, and some that can't.
func seeds(t testing.TB) (trees [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*.dtb"))
	if err != nil || len(files) == 0 {
		t.Fatal("no trees: ", err)
	}
	for _, file := range files {
		tree, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		trees = append(trees, tree)
	}
	for _, s := range []string{
		"{ } end",
		"nop { nop } nop end",
		`{ a{ device_type="memory" reg=1,0,9 status="okay" } b{ device_type="memory" reg=2,0,9 status="no" } } end`,
		`{ reserved-memory{ ranges= a{ reg=1,0,1000,3,0,1 no-map= } b{ } } } end`,
		"{ a{ b{ c{ d{ reg=1 } } } } } end",
	} {
		trees = append(trees, blocks{structure: structure(s), names: []byte(names)}.encode())
	}
	return trees
}

// memoryOf is what a tree says of memory, by the nodes that another reader found in it. It is for trees that
// fdt.Decode reads.
func memoryOf(tree *dt.FDT) (m fdt.Memory) {
	for _, r := range tree.ReserveEntries {
		m.MemReserve = append(m.MemReserve, fdt.Range{Start: r.Address, Size: r.Size})
	}
	root := tree.RootNode
	for _, n := range root.Children {
		if value(n, "device_type") == "memory\x00" && inUse(n) {
			m.RAM = append(m.RAM, regOf(n, root)...)
		}
		if n.Name != "reserved-memory" || !inUse(n) {
			continue
		}
		for _, child := range n.Children {
			_, noMap := child.LookProperty("no-map")
			if !inUse(child) {
				continue
			}
			for _, r := range regOf(child, n) {
				m.Reserved = append(m.Reserved, fdt.Reserved{Name: child.Name, Range: r, NoMap: noMap})
			}
		}
	}
	return m
}

func value(n *dt.Node, name string) string {
	if p, ok := n.LookProperty(name); ok {
		return string(p.Value)
	}
	return ""
}

func inUse(n *dt.Node) bool {
	_, ok := n.LookProperty("status")
	return !ok || slices.Contains([]string{"okay\x00", "ok\x00"}, value(n, "status"))
}

func regOf(n, parent *dt.Node) (ranges []fdt.Range) {
	count := func(name string, otherwise byte) int {
		return int((value(parent, name) + "\x00\x00\x00" + string(otherwise))[3])
	}
	a, s := count("#address-cells", 2), count("#size-cells", 1)
	take := func(b []byte) (v uint64) {
		for _, c := range b {
			v = v<<8 | uint64(c)
		}
		return v
	}
	for reg := []byte(value(n, "reg")); len(reg) > 0; reg = reg[4*(a+s):] {
		if r := (fdt.Range{Start: take(reg[:4*a]), Size: take(reg[4*a : 4*(a+s)])}); r.Size > 0 {
			ranges = append(ranges, r)
		}
	}
	return ranges
}
