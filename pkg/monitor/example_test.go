package monitor_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// exampleRing returns both sides of a fresh ring.
func exampleRing() (*shm.Reader, *shm.Writer) {
	memory, err := guestmem.New(guestmem.Region{Mem: make([]byte, 8<<10)})
	if err != nil {
		panic(err)
	}
	region, err := memory.Window(0, 8<<10)
	if err != nil {
		panic(err)
	}
	if err := shm.Init(region); err != nil {
		panic(err)
	}
	reader, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		panic(err)
	}
	writer, err := shm.NewWriter(region)
	if err != nil {
		panic(err)
	}
	return reader, writer
}

// A monitor reads the ring while the guest writes, until a handler has seen enough.
func Example() {
	reader, guest := exampleRing()
	mux := monitor.NewMux()
	mux.HandleFunc(shm.TestResult, func(m shm.Message) monitor.Verdict {
		fmt.Printf("result: %s\n", m.Payload)
		return monitor.Continue
	})
	mux.HandleFunc(shm.Exit, func(m shm.Message) monitor.Verdict {
		code, err := shm.DecodeCode(m.Payload)
		if err != nil {
			return monitor.Reject(err)
		}
		return monitor.Stop(fmt.Errorf("the guest exited with code %d", code))
	})
	m := monitor.New(monitor.Config{Reader: reader, Mux: mux})
	if err := m.Start(); err != nil {
		fmt.Println(err)
		return
	}
	defer m.Stop()

	code := shm.EncodeCode(0)
	_ = guest.Write(shm.TestResult, []byte(`{"passed":true}`))
	_ = guest.Write(shm.Exit, code[:])

	fmt.Println("stop:", <-m.Verdict())
	// Output:
	// result: {"passed":true}
	// stop: the guest exited with code 0
}

// A handler that has no room leaves a message in the ring, and gets it again. What it has no room for to the end
// is counted.
func ExampleMonitor_Finish() {
	reader, guest := exampleRing()
	mux, room := monitor.NewMux(), 1
	mux.HandleFunc(shm.Stdout, func(m shm.Message) monitor.Verdict {
		if room == 0 {
			return monitor.NotNow
		}
		room--
		fmt.Printf("%s\n", m.Payload)
		return monitor.Continue
	})
	m := monitor.New(monitor.Config{Reader: reader, Mux: mux})

	_ = guest.Write(shm.Stdout, []byte("the first"))
	_ = guest.Write(shm.Stdout, []byte("the second"))

	ctx, cancel := context.WithCancel(context.Background())
	cancel() // nothing is waited for
	m.Finish(ctx)
	fmt.Println(m.Stats().Omitted, "bytes are omitted")
	// Output:
	// the first
	// 10 bytes are omitted
}

// A payload that its type does not allow is counted among the faults, and ends nothing.
func ExampleReject() {
	reader, guest := exampleRing()
	mux := monitor.NewMux()
	mux.HandleFunc(shm.TestResult, func(shm.Message) monitor.Verdict {
		return monitor.Reject(errors.New("not JSON"))
	})
	m := monitor.New(monitor.Config{
		Reader: reader, Mux: mux,
		OnFault: func(kind string, detail error) { fmt.Printf("%s: %v\n", kind, detail) },
	})
	_ = guest.Write(shm.TestResult, []byte("passed"))
	m.Finish(context.Background())
	fmt.Println(m.Stats().FaultCount(), "fault")
	// Output:
	// bad_payload: not JSON
	// 1 fault
}
