package x86

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// The tables can be followed from the root pointer, each has its length and sums up to zero, and
// every processor is listed once.
func TestACPITables(t *testing.T) {
	for _, cpus := range []int{1, 2, 32, maxCPUs} { // as cores
		mem := make([]byte, 1<<20)
		ram, err := guestmem.New(guestmem.Region{Base: 0, Mem: mem})
		if err != nil {
			t.Fatal(err)
		}
		if err := loadACPI(ram, vm.Config{Topology: topology.OfCores(cpus)}); err != nil {
			t.Fatal(err)
		}
		root := mem[rsdpAddr : rsdpAddr+36]
		if string(root[:8]) != "RSD PTR " || checksum(root[:20]) != 0 || checksum(root) != 0 {
			t.Fatalf("root pointer % x", root)
		}
		table := func(at uint64, signature string) []byte {
			b := mem[at : at+uint64(le.Uint32(mem[at+4:]))]
			if string(b[:4]) != signature || checksum(b) != 0 {
				t.Fatalf("%d processors: table at 0x%x is %q, its sum is %d", cpus, at, b[:4], checksum(b))
			}
			return b
		}
		xsdt := table(le.Uint64(root[24:]), "XSDT")
		fadt := table(le.Uint64(xsdt[36:]), "FACP")
		madt := table(le.Uint64(xsdt[44:]), "APIC")
		dsdt := table(le.Uint64(fadt[140:]), "DSDT")
		if !bytes.Contains(dsdt, []byte("COM1")) || len(fadt) != fadtSize {
			t.Errorf("DSDT % x, FADT of %d bytes", dsdt, len(fadt))
		}
		seen := map[byte]bool{}
		ioAPICs := 0
		for e := madt[44:]; len(e) > 0; e = e[e[1]:] {
			switch e[0] {
			case 0:
				seen[e[3]] = true
			case 1:
				ioAPICs++
			}
		}
		if len(seen) != cpus || ioAPICs != 1 {
			t.Errorf("%d processors listed of %d, %d I/O APICs", len(seen), cpus, ioAPICs)
		}
	}
}

// The tables of NUMA nodes name each processor by its APIC ID, each byte of memory once, and all distances.
func TestACPITablesOfNodes(t *testing.T) {
	mem := make([]byte, 1<<20)
	ram, err := guestmem.New(guestmem.Region{Base: 0, Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	if err := loadACPI(ram, vm.Config{Memory: 5 << 30, Reserved: 16 << 20, Topology: topology.Topology{
		Sockets: 2, Cores: 3, Threads: 2, Nodes: 2, Distances: [][]uint8{{10, 30}, {21, 10}},
	}}); err != nil {
		t.Fatal(err)
	}
	tables := map[string][]byte{}
	xsdt := mem[le.Uint64(mem[rsdpAddr+24:]):]
	for list := xsdt[sdtHeaderSize:le.Uint32(xsdt[4:])]; len(list) > 0; list = list[8:] {
		b := mem[le.Uint64(list):]
		tables[string(b[:4])] = b[sdtHeaderSize:le.Uint32(b[4:])]
	}
	ids := []byte{0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13}
	for i, id := range ids {
		if entry := tables["APIC"][8+8*i:]; !bytes.Equal(entry[:8], []byte{0, 8, byte(i), id, 1, 0, 0, 0}) {
			t.Errorf("MADT: processor %d is % x", i, entry[:8])
		}
		if entry := tables["SRAT"][12+16*i:]; !bytes.Equal(entry[:8], []byte{0, 16, byte(i / 6), id, 1, 0, 0, 0}) {
			t.Errorf("SRAT: processor %d is % x", i, entry[:8])
		}
	}
	type memory struct {
		node       uint32
		base, size uint64
	}
	var got []memory
	for e := tables["SRAT"][12+16*len(ids):]; len(e) > 0; e = e[40:] {
		if !bytes.Equal(e[:2], []byte{1, 40}) || le.Uint32(e[28:]) != 1 {
			t.Errorf("SRAT: memory is % x", e[:40])
		}
		got = append(got, memory{le.Uint32(e[2:]), le.Uint64(e[8:]), le.Uint64(e[16:])})
	}
	const half = (5<<30 - 16<<20) / 2
	want := []memory{{0, 0, half}, {1, half, 3<<30 - half}, {1, 4 << 30, 2<<30 - 16<<20}, {1, 6<<30 - 16<<20, 16 << 20}}
	if !slices.Equal(got, want) {
		t.Errorf("SRAT: memory %#x, want %#x", got, want)
	}
	if want := []byte{2, 0, 0, 0, 0, 0, 0, 0, 10, 30, 21, 10}; !bytes.Equal(tables["SLIT"], want) {
		t.Errorf("SLIT % x", tables["SLIT"])
	}
}

// What the tables can't name is refused: APIC IDs that 8 bits have no room for, nodes without memory.
func TestACPITablesRefuse(t *testing.T) {
	ram, err := guestmem.New(guestmem.Region{Base: 0, Mem: make([]byte, 1<<20)})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]vm.Config{
		"APIC ID 260": {Topology: topology.Topology{Sockets: 9, Cores: 17}},
		"threads":     {Topology: topology.Topology{Threads: 3}},
		"nodes":       {Memory: 64 << 20, Topology: topology.Topology{Sockets: 16, Nodes: 16}},
	} {
		if err := loadACPI(ram, c); !errors.Is(err, vm.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
