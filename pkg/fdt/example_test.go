package fdt_test

import (
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

func ExampleMachine_Encode() {
	m := fdt.Machine{
		RAM:      []fdt.Range{{Start: 1 << 30, Size: 496 << 20}},
		Ring:     fdt.Range{Start: 1<<30 + 496<<20, Size: 16 << 20},
		Topology: topology.OfCores(2),
		Devices: fdt.Devices{ // those of QEMU's virt
			Distributor:    fdt.Range{Start: 0x08000000, Size: 0x10000},
			Redistributors: fdt.Range{Start: 0x080a0000, Size: 0xf60000},
			UART:           fdt.Range{Start: 0x09000000, Size: 0x1000},
			UARTInterrupt:  1,
			UARTClock:      24_000_000,
			Timer:          fdt.Timer{Secure: 13, Physical: 14, Virtual: 11, Hypervisor: 10},
		},
		Bootargs: "console=ttyAMA0",
	}
	tree, err := m.Encode()
	if err != nil {
		fmt.Println(err)
		return
	}
	memory, err := fdt.Decode(tree)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("RAM:", memory.RAM[0])
	for _, r := range memory.Reserved {
		fmt.Println(r.Name+":", r.Range, r.NoMap)
	}

	m.Topology = topology.OfCores(124)
	_, err = m.Encode()
	fmt.Println(err)
	// Output:
	// RAM: 0x20000000 bytes at 0x40000000
	// shm@5f000000: 0x1000000 bytes at 0x5f000000 true
	// processors can't be described: 124, it can be 1 to 123 with redistributors of 0xf60000 bytes at 0x80a0000
}
