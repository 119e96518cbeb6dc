package shm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// ringIn makes a fresh ring in memory, as the host does before its guest starts.
func ringIn(mem []byte) *guestmem.Window {
	memory, err := guestmem.New(guestmem.Region{Mem: mem})
	if err != nil {
		panic(err)
	}
	region, err := memory.Window(0, uint64(len(mem)))
	if err != nil {
		panic(err)
	}
	if err := shm.Init(region); err != nil {
		panic(err)
	}
	return region
}

// A guest writes, and the host reads what is there when it looks.
func Example() {
	region := ringIn(make([]byte, 8<<10))
	reader, err := shm.NewReader(region, shm.Limits{}) // the host's
	if err != nil {
		fmt.Println(err)
		return
	}
	writer, err := shm.NewWriter(region) // the guest's
	if err != nil {
		fmt.Println(err)
		return
	}

	code := shm.EncodeCode(3)
	_ = writer.Write(shm.TestResult, []byte(`{"passed":false}`))
	_ = writer.Write(shm.Exit, code[:])

	reader.Drain(func(m shm.Message) bool {
		switch m.Type {
		case shm.Exit:
			code, err := shm.DecodeCode(m.Payload)
			fmt.Println(m.Type, code, err)
		default:
			fmt.Printf("%v %s\n", m.Type, m.Payload)
		}
		return true
	})
	// Output:
	// TEST {"passed":false}
	// EXIT 3 <nil>
}

// A message that is not taken stays in the ring, with those behind it: a slow reader slows the guest down, and
// loses nothing.
func ExampleReader_Drain() {
	region := ringIn(make([]byte, 8<<10))
	reader, _ := shm.NewReader(region, shm.Limits{})
	writer, _ := shm.NewWriter(region)
	for _, text := range []string{"one", "two", "three"} {
		_ = writer.Write(shm.Stdout, []byte(text))
	}

	room := 2
	take := func(m shm.Message) bool {
		if room == 0 {
			return false
		}
		room--
		fmt.Printf("%s\n", m.Payload)
		return true
	}
	d := reader.Drain(take)
	fmt.Println(d.Messages, "messages taken; more are held:", d.Held)
	room = 1
	reader.Drain(take)
	// Output:
	// one
	// two
	// 2 messages taken; more are held: true
	// three
}

// The reader knows where the ring lies and how far it has read. A guest that lies about the rest is found out,
// and what it writes afterwards is read.
func ExampleFault() {
	mem := make([]byte, 8<<10)
	region := ringIn(mem)
	reader, _ := shm.NewReader(region, shm.Limits{})
	writer, _ := shm.NewWriter(region)

	_ = writer.Write(shm.Stdout, []byte("lost"))
	mem[shm.HeaderSize+4] = 0xff // a part of the message's length
	mem[shm.HeaderSize+7] = 0xff
	d := reader.Drain(func(shm.Message) bool { return true })
	fmt.Println(d.Fault.Kind, errors.Is(&d.Fault, shm.ErrFault))

	_ = writer.Write(shm.Stdout, []byte("read"))
	reader.Drain(func(m shm.Message) bool { fmt.Printf("%s\n", m.Payload); return true })
	// Output:
	// bad_length true
	// read
}

// A full ring drops a message and counts it, or makes its writer wait.
func ExampleWriter() {
	region := ringIn(make([]byte, 100))
	reader, _ := shm.NewReader(region, shm.Limits{})
	writer, _ := shm.NewWriter(region)

	fmt.Println(writer.Write(shm.Stdout, make([]byte, 40)))
	fmt.Println(writer.Write(shm.Stdout, make([]byte, 40)))

	read := make(chan struct{})
	go func() {
		defer close(read)
		reader.Drain(func(shm.Message) bool { return true })
	}()
	fmt.Println(writer.WriteWait(context.Background(), shm.Stdout, make([]byte, 40)))
	<-read
	// Output:
	// <nil>
	// no room in the ring, message dropped: it takes 56 bytes, 4 of 60 are free
	// <nil>
}

// A ring in a file, such as a memory image, is read without a guest. What can be read is, even where it is broken.
func ExampleSnapshot() {
	image := make([]byte, 8<<10)
	writer, _ := shm.NewWriter(ringIn(image))
	_ = writer.Write(shm.Crash, []byte("panic: it broke"))

	snapshot, err := shm.NewSnapshot(bytes.NewReader(image), uint64(len(image)))
	if err != nil {
		fmt.Println(err)
		return
	}
	err = snapshot.Drain(func(m shm.Message) error {
		_, err := fmt.Println(m.Type, shm.CrashText(m.Payload))
		return err
	})
	fmt.Println(err)
	// Output:
	// CRSH panic: it broke
	// <nil>
}

// The host asks, and the guest finds the request when it looks.
func ExampleControl() {
	region := ringIn(make([]byte, 8<<10))
	host, _ := shm.NewControl(region)
	guest, _ := shm.NewControl(region)

	host.RequestStall()
	fmt.Println(guest.TakeStall(), guest.TakeStall())

	_ = host.Signal(shm.SlotHost, shm.SignalShutdown)
	v, err := guest.WaitFor(context.Background(), shm.SlotHost)
	fmt.Printf("%#x %v\n", v, err)
	// Output:
	// true false
	// 0xdd <nil>
}

// A guest finds the ring by its kernel's command line.
func ExampleParseParams() {
	p := shm.Params{Base: 0x1f000000, Size: 16 << 20}
	fmt.Println(p)
	found, err := shm.ParseParams("console=ttyS0 " + p.String() + " quiet")
	fmt.Println(found == p, err)
	// Output:
	// KTSTR_SHM_BASE=0x1f000000 KTSTR_SHM_SIZE=0x1000000
	// true <nil>
}
