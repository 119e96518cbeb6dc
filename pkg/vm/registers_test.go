package vm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// known is what the guests that knows has for an architecture have in their registers when they spin or halt.
const known = 0x1122334455667788

// knows is a guest that fills registers, and then spins or halts, by an address.
type knows struct {
	kernel vm.Loader
	pc     uint64 // of a loop of at most 8 bytes
	names  []string
}

// armKnows moves known to x0, x19 and the stack pointer.
func armKnows(then ...uint32) (code arm64.Code) {
	for _, x := range []uint32{0, 19} {
		code = append(code, 0xd2800000|0x7788<<5|x, 0xf2a00000|0x5566<<5|x, 0xf2c00000|0x3344<<5|x, 0xf2e00000|0x1122<<5|x)
	}
	code = append(code, 0x9100001f) // mov sp, x0
	return append(code, then...)
}

// x86Knows moves known to rax, r15 and rsp.
func x86Knows(then ...byte) x86.Code {
	value := binary.LittleEndian.AppendUint64(nil, known)
	code := append(x86.Code{0x48, 0xb8}, value...)
	code = append(append(code, 0x49, 0xbf), value...)
	code = append(code, 0x48, 0x89, 0xc4) // mov rsp, rax
	return append(code, then...)
}

var (
	knowsAndSpins = map[string]knows{
		"x86_64": {x86Knows(0xeb, 0xfe), 1<<20 + 23, []string{"rax", "r15", "rsp"}},
		"arm64":  {armKnows(armSpin), arm64.RAM + 2<<20 + 36, []string{"x0", "x19", "sp"}},
	}
	knowsAndHalts = map[string]knows{
		"x86_64": {x86Knows(0xfa, 0xf4, 0xeb, 0xfc), 1<<20 + 23, []string{"rax", "r15", "rsp"}},
		"arm64":  {armKnows(armHalt...), arm64.RAM + 2<<20 + 36, []string{"x0", "x19", "sp"}},
	}
)

// registers reads a running machine's registers.
func registers(t *testing.T, m *vm.Machine) []vm.Registers {
	t.Helper()
	all, err := m.Registers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range all {
		if r.CPU != i || r.Err != nil {
			t.Fatalf("processor %d: %+v", i, r)
		}
	}
	return all
}

func valueOf(t *testing.T, r vm.Registers, name string) uint64 {
	t.Helper()
	for _, v := range r.Values {
		if v.Name == name {
			return v.Value
		}
	}
	t.Fatalf("no %s in %+v", name, r.Values)
	return 0
}

// What is in the registers of a guest that spins, or is halted, and of processors that it has not started.
func TestRegisters(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		for name, g := range map[string]knows{"spins": knowsAndSpins[on.Arch], "halts": knowsAndHalts[on.Arch]} {
			t.Run(name, func(t *testing.T) {
				m := machine(t, on.Backend, vm.Config{Kernel: g.kernel, Topology: topology.OfCores(4), Memory: 64 << 20})
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
				there := func(r vm.Registers) bool { return r.PC >= g.pc && r.PC <= g.pc+8 }
				all := registers(t, m)
				for start := time.Now(); !there(all[0]) || on.Arch == "x86_64" && name == "halts" &&
					all[0].State != vm.Halted; all = registers(t, m) {
					if time.Since(start) > vmtest.HangLimit {
						t.Fatalf("processor 0 does not get to 0x%x: %+v", g.pc, all[0])
					}
				}
				if len(all) != 4 || all[0].SP != known {
					t.Errorf("%d processors, the stack pointer is 0x%x", len(all), all[0].SP)
				}
				for _, register := range g.names {
					if got := valueOf(t, all[0], register); got != known {
						t.Errorf("%s is 0x%x", register, got)
					}
				}
				if name == "spins" && all[0].State == vm.Halted {
					t.Error("it spins, and is said to be halted")
				}
				for _, r := range all[1:] {
					if there(r) || r.State == vm.Running || on.Backend.Name() == "kvm" && r.State != vm.Off {
						t.Errorf("a processor that nobody has started: %+v", r)
					}
				}
			})
		}
	})
}

// A guest that is asked again and again does what it does: it says all that it has to say, and two processors go on.
func TestRegistersLeaveTheGuestAlone(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		t.Run("messages", func(t *testing.T) {
			for range 10 { // of which each may be asked when it is about to end
				saysAll(t, on)
			}
		})
		t.Run("two processors", func(t *testing.T) {
			g := guestsOf[on.Arch]
			m := machine(t, on.Backend, vm.Config{Kernel: g.twoCounters, Topology: topology.OfCores(2), Memory: 64 << 20})
			counter, err := m.Memory().Uint32(g.counters)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			goesOn := func() {
				t.Helper()
				for before := counter.Load(); counter.Load() == before; time.Sleep(time.Millisecond) {
					if time.Since(start) > vmtest.HangLimit {
						t.Fatalf("the second processor does not go on: %+v", registers(t, m))
					}
				}
			}
			goesOn()
			for range 100 {
				for _, r := range registers(t, m) {
					if r.State == vm.Off || r.State == vm.Halted {
						t.Errorf("it runs: %+v", r)
					}
				}
			}
			goesOn()
		})
	})
}

// saysAll runs a guest that is asked for its registers all the time, and wants all of its messages.
func saysAll(t *testing.T, on testenv.Machine) {
	t.Helper()
	kernel := vmtest.Demo(t, on.Arch)
	layout, err := kernel.Board().Layout(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	ring := layout.Reserved
	const steps = 20
	m := machine(t, on.Backend, vm.Config{Kernel: kernel, Topology: topology.OfCores(2),
		Cmdline: shm.Params{Base: uint64(ring.Base), Size: ring.Size}.String() +
			fmt.Sprintf(" demo.scenario=ok demo.steps=%d demo.step_ms=1", steps)})
	region, err := m.Memory().Window(ring.Base, ring.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := shm.Init(region); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for ; err == nil; asked++ {
		_, err = m.Registers(t.Context())
	}
	if end := vmtest.End(t, m); !errors.Is(end, vm.ErrReset) || !errors.Is(err, vm.ErrNotRunning) || asked < 2 {
		t.Fatalf("ended by %v; asked %d times, the last time %v", end, asked, err)
	}
	r, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	counts, exit := map[shm.Type]int{}, int32(-1)
	r.Drain(func(msg shm.Message) bool {
		if counts[msg.Type]++; msg.Type == shm.Exit {
			exit, _ = shm.DecodeCode(msg.Payload)
		}
		return true
	})
	if counts[shm.Stimulus] != steps || exit != 0 || r.Stats().CRCErrors > 0 {
		t.Errorf("%d stimuli of %d, EXIT %d, %+v", counts[shm.Stimulus], steps, exit, r.Stats())
	}
}

// Whoever asks while the machine is stopped gets an answer or is told; the stop waits for nobody. Before and after
// there is nothing to ask.
func TestRegistersOfAMachineThatStops(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		for range 3 {
			m := machine(t, on.Backend, vm.Config{Kernel: guestsOf[on.Arch].spin, Topology: topology.OfCores(2),
				Memory: 64 << 20})
			if _, err := m.Registers(t.Context()); !errors.Is(err, vm.ErrNotRunning) {
				t.Errorf("before its start: %v", err)
			}
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			registers(t, m)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if all, err := m.Registers(ctx); !errors.Is(err, context.Canceled) {
				for _, r := range all {
					if r.Err != nil && !errors.Is(r.Err, context.Canceled) {
						t.Errorf("with a context that has ended: %+v, %v", all, err)
					}
				}
			}
			var asking sync.WaitGroup
			for range 4 {
				asking.Go(func() {
					for {
						all, err := m.Registers(context.Background())
						if errors.Is(err, vm.ErrNotRunning) {
							return
						}
						if err != nil {
							t.Error(err)
							return
						}
						for _, r := range all {
							if r.Err != nil && !errors.Is(r.Err, vm.ErrNotRunning) {
								t.Error(r.Err)
							}
						}
					}
				})
			}
			time.Sleep(5 * time.Millisecond) // into the middle of it
			stopped := errors.New("stopped")
			m.Stop(stopped)
			if err := vmtest.End(t, m); err != stopped {
				t.Error(err)
			}
			asking.Wait()
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if _, err := m.Registers(t.Context()); !errors.Is(err, vm.ErrNotRunning) {
				t.Errorf("after its end: %v", err)
			}
		}
	})
}

// blind is a back end whose machines' registers can't be read.
type blind struct{ vm.Backend }

func (b blind) New(s vm.Spec, stop func(error)) (vm.Instance, error) {
	i, err := b.Backend.New(s, stop)
	return struct{ vm.Instance }{i}, err
}

func TestNoRegisters(t *testing.T) {
	m := machine(t, blind{testenv.Backend(t)}, vm.Config{Kernel: spin, Memory: 64 << 20})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Registers(t.Context()); !errors.Is(err, vm.ErrNoRegisters) {
		t.Error(err)
	}
}
