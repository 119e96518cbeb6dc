package run_test

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// pretended is a machine whose guest is a function of this process. Its ring lies where the run looks for it.
type pretended struct {
	memory *guestmem.Memory
	ring   *guestmem.Window
	guest  func(*shm.Writer)
	done   chan struct{}
}

func pretend(cfg vm.Config, guest func(*shm.Writer)) (run.Machine, error) {
	layout, err := cfg.Kernel.Board().Layout(cfg.Memory, cfg.Reserved)
	if err != nil {
		return nil, err
	}
	at, size := layout.Reserved.Base, layout.Reserved.Size
	memory, err := guestmem.New(guestmem.Region{Base: at, Mem: make([]byte, size)})
	if err != nil {
		return nil, err
	}
	ring, err := memory.Window(at, size)
	return &pretended{memory, ring, guest, make(chan struct{})}, err
}

func (p *pretended) Start() error {
	writer, err := shm.NewWriter(p.ring)
	if err != nil {
		return err
	}
	go func() {
		defer close(p.done)
		p.guest(writer)
	}()
	return nil
}

func (p *pretended) Memory() *guestmem.Memory         { return p.memory }
func (p *pretended) Stop(error)                       {} // its guest ends by itself
func (p *pretended) Done() <-chan struct{}            { return p.done }
func (p *pretended) Wait() error                      { <-p.done; return vm.ErrPowerOff }
func (p *pretended) Bell() <-chan struct{}            { return nil }
func (p *pretended) Rings() uint64                    { return 0 }
func (p *pretended) Exits() iter.Seq2[string, uint64] { return nil }
func (p *pretended) FirstExit() time.Time             { return time.Time{} }
func (p *pretended) Close() error                     { return nil }

// A run reads what its guest writes, from the first message to the last, and makes one outcome of it. The machine
// may be any: a test's own, as here, or what vm.New makes where NewMachine is nil.
func ExampleRun() {
	guest := func(ring *shm.Writer) {
		code := shm.EncodeCode(3)
		_ = ring.Write(shm.TestResult, []byte(`{"name":"wakes","passed":false}`))
		_ = ring.Write(shm.Exit, code[:])
	}
	result := run.Run(context.Background(), run.Config{
		VM:         vm.Config{Kernel: x86.ELF{}},
		NewMachine: func(cfg vm.Config) (run.Machine, error) { return pretend(cfg, guest) },
		Timeout:    10 * time.Second,
		OnMessage: func(_ time.Duration, m shm.Message) monitor.Verdict {
			fmt.Println("read", m.Type)
			return monitor.Continue
		},
	})
	fmt.Println(result.Outcome, result.ExitCode)
	fmt.Println(result.Reason)
	fmt.Printf("%s\n", result.TestResults[0].Payload)
	// Output:
	// read TEST
	// read EXIT
	// exited 3
	// the guest exited with code 3
	// {"name":"wakes","passed":false}
}
