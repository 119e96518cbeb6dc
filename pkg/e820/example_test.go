package e820_test

import (
	"encoding/binary"
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/e820"
)

// The ring lies at the top of RAM, and the map that the kernel gets ends below it.
func ExampleNew() {
	layout, err := e820.New(512<<20, 16<<20)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range layout.Map {
		fmt.Printf("%#010x - %#010x  type %d\n", e.Start, e.End(), e.Type)
	}
	fmt.Printf("%#010x - %#010x  the ring\n", layout.Ring.Start, layout.Ring.End())
	// Output:
	// 0x0000000000 - 0x000009fc00  type 1
	// 0x000009fc00 - 0x00000a0000  type 2
	// 0x0000100000 - 0x001f000000  type 1
	// 0x001f000000 - 0x0020000000  the ring
}

// RAM that does not fit below the devices goes on at 4 GiB, and takes the ring with it.
func ExampleNew_aboveFourGiB() {
	layout, err := e820.New(5<<30, 16<<20)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("low   %#x - %#x\n", layout.Low.Start, layout.Low.End())
	fmt.Printf("high  %#x - %#x\n", layout.High.Start, layout.High.End())
	fmt.Printf("ring  %#x - %#x\n", layout.Ring.Start, layout.Ring.End())
	// Output:
	// low   0x0 - 0xc0000000
	// high  0x100000000 - 0x17f000000
	// ring  0x17f000000 - 0x180000000
}

// A kernel finds the map in its zero page.
func ExampleEncode() {
	layout, err := e820.New(512<<20, 16<<20)
	if err != nil {
		fmt.Println(err)
		return
	}
	bootParams := make([]byte, e820.BootParamsSize)
	if err := e820.Encode(layout.Map, bootParams); err != nil {
		fmt.Println(err)
		return
	}
	const entries, table = 0x1e8, 0x2d0 // Linux boot protocol, "The zero page"
	second := binary.LittleEndian.Uint64(bootParams[table+20:])
	fmt.Printf("%d entries, the second at %#x\n", bootParams[entries], second)
	// Output:
	// 3 entries, the second at 0x9fc00
}
