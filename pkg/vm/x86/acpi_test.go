package x86

import (
	"bytes"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// The tables can be followed from the root pointer, each has its length and sums up to zero, and
// every processor is listed once.
func TestACPITables(t *testing.T) {
	for _, cpus := range []int{1, 2, 32, maxCPUs} {
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
