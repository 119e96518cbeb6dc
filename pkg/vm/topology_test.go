package vm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// rollCall is a kernel whose processors each look their APIC ID up in CPUID, in leaf 1 and in leaf 0xb, and store the
// one at the place in a table that the other names, plus one. The first starts the others, as in twoCounters.
type rollCall struct{}

const roll = counters

func (rollCall) Board() vm.Board { return x86.Board{} }

func (rollCall) Load(ram *guestmem.Memory) (vm.Kernel, error) {
	first := x86.Code{
		0xb8, 1, 0, 0, 0, 0x0f, 0xa2, // mov eax, 1; cpuid
		0xc1, 0xeb, 24, 0x89, 0xde, // shr ebx, 24; mov esi, ebx
		0xb8, 0xb, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2, // mov eax, 0xb; xor ecx, ecx; cpuid
		0xff, 0xc2, // inc edx
		0x89, 0x14, 0xb5, 0x00, 0x20, 0x01, 0x00, // mov [rsi*4+roll], edx
		0xc7, 0x04, 0x25, 0x18, 0xa0, 0x00, 0x00, 0x03, 0xc0, 0x00, 0x00, // mov dword [0xa018], apicTable | 3: the fourth GiB
		0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, apicBase
		0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // mov dword [rbx+0xf0], 0x1ff: switch it on
		0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x0c, 0x00, // mov dword [rbx+0x300], 0xc4500: INIT to all others
		0xb9, 0x00, 0x00, 0x01, 0x00, // again: mov ecx, 65536
		0xff, 0xc9, 0x75, 0xfc, // dec ecx; jnz to the dec
		0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x10, 0x46, 0x0c, 0x00, // mov dword [rbx+0x300], 0xc4610: SIPI
		0xeb, 0xeb, // jmp again
	}
	other := []byte{ // the same, in real mode
		0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2,
		0x66, 0xc1, 0xeb, 24, 0x66, 0x89, 0xde,
		0x66, 0xb8, 0xb, 0, 0, 0, 0x66, 0x31, 0xc9, 0x0f, 0xa2,
		0x66, 0x42,
		0xb8, 0x00, 0x12, 0x8e, 0xd8, // mov ax, roll >> 4; mov ds, ax
		0x67, 0x66, 0x89, 0x14, 0xb5, 0, 0, 0, 0, // mov [esi*4], edx
		0xf4, 0xeb, 0xfd, // hlt; jmp to the hlt
	}
	directory := make([]byte, 4096)
	const page = apicBase &^ (1<<21 - 1)
	binary.LittleEndian.PutUint64(directory[page>>21%512*8:], page|0x9b) // present, writable, not cached, 2 MiB
	return vm.Kernel{Entry: 1 << 20},
		errors.Join(ram.Write(first, 1<<20), ram.Write(other, secondCode), ram.Write(directory, apicTable))
}

// Every processor of a machine finds the APIC ID in its CPUID that the machine's tables name it by, on each back end.
// What the emulator can't show it refuses.
func TestX86ProcessorsKnowTheirAPICIDs(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for _, of := range []topology.Topology{
			{Cores: 3},
			{Sockets: 2, Cores: 3, Threads: 2},
			{Sockets: 3, Threads: 2},
			{Sockets: 2, Dies: 2, Cores: 3},
			{Cores: 6, LLCCores: 3},
			{Sockets: 4, Cores: 4, Threads: 2},
		} {
			of, err := of.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			t.Run(fmt.Sprintf("%s,llc=%d", of, of.LLCCores), func(t *testing.T) { answersRollCall(t, b, of) })
		}
	})
}

// hasPlainAMD reports whether the host's processor is an AMD without the topology extensions, as the bed's is.
func hasPlainAMD(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), "AuthenticAMD") && !strings.Contains(string(text), " topoext")
}

func answersRollCall(t *testing.T, b vm.Backend, of topology.Topology) {
	cfg := vm.Config{Kernel: rollCall{}, Backend: b, Topology: of, Memory: 64 << 20}
	_, emulated := b.(qemu.Backend)
	caches := of.Dies > 1 || of.LLCCores < of.Cores
	switch {
	case emulated && caches:
		if _, err := vm.New(cfg); !errors.Is(err, qemu.ErrTopology) || !errors.Is(err, vm.ErrConfig) {
			t.Error(err)
		}
		return
	case !emulated && (caches || of.Threads > 1) && hasPlainAMD(t):
		if _, err := vm.New(cfg); !errors.Is(err, vm.ErrConfig) {
			t.Error(err)
		}
		return
	}
	m := machine(t, b, cfg)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	want := map[uint32]uint32{}
	for cpu := range of.CPUs() {
		want[of.APICID(cpu)] = of.APICID(cpu) + 1
	}
	for deadline := time.Now().Add(vmtest.HangLimit); ; time.Sleep(time.Millisecond) {
		got := map[uint32]uint32{}
		for id := range uint32(256) {
			word, err := m.Memory().Uint32(roll + guestmem.Addr(4*id))
			if err != nil {
				t.Fatal(err)
			}
			if v := word.Load(); v != 0 {
				got[id] = v
			}
		}
		select {
		case <-m.Done():
			t.Fatalf("ended by %v", m.Wait())
		default:
		}
		if late := time.Now().After(deadline); late || len(got) >= len(want) {
			if !reflect.DeepEqual(got, want) {
				t.Errorf("by APIC ID of leaf 1, that of leaf 0xb and one: %v, want %v; in time: %v", got, want, !late)
			}
			return
		}
	}
}

// The threads of pinned processors may run where they were pinned to, nowhere else, and no thread of ours stays pinned.
func TestPinnedProcessors(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		allowed, err := affinity.Allowed()
		if err != nil {
			t.Fatal(err)
		}
		pin := allowed[max(0, len(allowed)-2):] // one each where there are two
		process, wants := os.Getpid(), map[string]int{}
		if on.Backend.Name() == "emulator" {
			pin = pin[len(pin)-1:] // of both: a QEMU before 8.1 has one thread for all processors
			wants[fmt.Sprint(pin[0])] = 1
		} else {
			for i := range 2 {
				wants[fmt.Sprint(pin[i%len(pin)])]++
			}
		}
		m := machine(t, on.Backend, vm.Config{Kernel: guestsOf[on.Arch].twoCounters, Memory: 64 << 20,
			Topology: topology.OfCores(2), Pin: pin})
		if on.Backend.Name() == "emulator" {
			process = vmtest.Children(t, process)[0]
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, func() error {
			for cpus, n := range wants {
				if found := threadsOn(t, process, cpus); found < n {
					return fmt.Errorf("%d threads may run on CPU %s alone, want %d", found, cpus, n)
				}
			}
			return nil
		})
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		await(t, func() error {
			for cpus := range wants {
				if found := threadsOn(t, os.Getpid(), cpus); found > 0 && len(allowed) > 1 {
					return fmt.Errorf("%d threads are still pinned to CPU %s", found, cpus)
				}
			}
			return nil
		})
	})
}

// await waits until ok has no error.
func await(t *testing.T, ok func() error) {
	t.Helper()
	for deadline := time.Now().Add(vmtest.HangLimit); ; time.Sleep(time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// threadsOn counts a process's threads that may run on these CPUs: proc(5), /proc/pid/status.
func threadsOn(t *testing.T, pid int, cpus string) (n int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, _ := os.ReadFile(file) // the thread may have ended
		if strings.Contains(string(text), "\nCpus_allowed_list:\t"+cpus+"\n") {
			n++
		}
	}
	return n
}

// A CPU that the host does not have ends the machine with an error that names it.
func TestPinToNoCPU(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, on testenv.Machine) {
		m, err := vm.New(vm.Config{Kernel: guestsOf[on.Arch].spin, Memory: 64 << 20, Pin: []int{1023}, Backend: on.Backend})
		if err != nil { // the emulator's threads may be pinned before the machine is built
			if !errors.Is(err, affinity.ErrCPU) {
				t.Error(err)
			}
			return
		}
		t.Cleanup(func() { _ = m.Close() })
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := vmtest.End(t, m); !errors.Is(err, vm.ErrRun) || !errors.Is(err, affinity.ErrCPU) ||
			!strings.Contains(err.Error(), "1023") {
			t.Errorf("ended by %v", err)
		}
	})
}

// Nodes get the same amount of RAM in order, wherever it lies, and the last one the rest with the reserved part.
func TestNodes(t *testing.T) {
	const gib, mib = 1 << 30, 1 << 20
	layout, err := x86.Board{}.Layout(5*gib+4096, 16*mib)
	if err != nil {
		t.Fatal(err)
	}
	share := uint64((5*gib - 16*mib) / 3 &^ (2*mib - 1))
	high := guestmem.Addr(4 * gib)
	want := [][]vm.Span{
		{{Base: 0, Size: share}},
		{{Base: guestmem.Addr(share), Size: 3*gib - share}, {Base: high, Size: 2*share - 3*gib}},
		{{Base: high + guestmem.Addr(2*share-3*gib), Size: 5*gib + 4096 - 16*mib - 2*share}, layout.Reserved},
	}
	// The second node's part below the hole is what the first left, if it has room.
	if 2*share <= 3*gib {
		t.Fatal("the test's sizes do not reach over the hole")
	}
	got, err := layout.Nodes(3)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%#x, %v; want %#x", got, err, want)
	}
	small, err := x86.Board{}.Layout(16*mib+8192, 8192)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := small.Nodes(4); err != nil || len(got) != 4 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := small.Nodes(5); !errors.Is(err, vm.ErrConfig) || !errors.Is(err, vm.ErrRoom) {
		t.Error(err)
	}
}
