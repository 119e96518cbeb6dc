package guestmem_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Two runs of RAM with a hole between them. An access is done as a whole or not at all.
func Example() {
	memory, err := guestmem.New(
		guestmem.Region{Base: 0x0000, Mem: make([]byte, 0x1000)},
		guestmem.Region{Base: 0x4000, Mem: make([]byte, 0x1000)},
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := memory.Write([]byte("hello"), 0x4010); err != nil {
		fmt.Println(err)
	}
	text := make([]byte, 5)
	if err := memory.Read(text, 0x4010); err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%s\n", text)

	err = memory.Write([]byte("hello"), 0x0ffe)
	fmt.Println(errors.Is(err, guestmem.ErrOutside), err)
	// Output:
	// hello
	// true address range is not guest RAM: 0x5 bytes at 0xffe
}

// A window is a part of memory that is addressed from 0. What lies outside of it can't be reached through it.
func ExampleMemory_Window() {
	memory, err := guestmem.New(guestmem.Region{Base: 0x1000, Mem: make([]byte, 0x1000)})
	if err != nil {
		fmt.Println(err)
		return
	}
	window, err := memory.Window(0x1800, 0x100)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := window.Write([]byte("x"), 0); err != nil {
		fmt.Println(err)
	}
	fmt.Println(window.Write([]byte("x"), 0x100))
	// Output:
	// address range is not guest RAM: 0x1 bytes at 0x100
}

// Host and guest meet at words of memory. What was written before a Store is there for whoever has seen what it
// stored.
func ExampleUint64() {
	memory, err := guestmem.New(guestmem.Region{Mem: make([]byte, 0x1000)})
	if err != nil {
		fmt.Println(err)
		return
	}
	written, err := memory.Uint64(0x800)
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan struct{})
	go func() { // the guest
		defer close(done)
		_ = memory.Write([]byte("data"), 0)
		written.Store(4)
	}()
	for written.Load() == 0 {
		runtime.Gosched()
	}
	data := make([]byte, written.Load())
	_ = memory.Read(data, 0)
	fmt.Printf("%s\n", data)
	<-done
	// Output:
	// data
}

// A file goes straight to where the guest finds it.
func ExampleMemory_Fill() {
	memory, err := guestmem.New(guestmem.Region{Base: 0x100000, Mem: make([]byte, 0x1000)})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(memory.Fill(strings.NewReader("kernel"), 0x100000, 6))
	fmt.Println(memory.Fill(strings.NewReader("cut"), 0x100000, 6))
	// Output:
	// <nil>
	// unexpected EOF
}
