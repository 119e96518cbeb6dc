package introspect_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
)

// running is a kernel with three CPUs: one runs a task, one is idle, one is not used.
func running(arch string) kerneltest.Kernel {
	return kerneltest.Kernel{Arch: arch, CPUs: []kerneltest.CPU{
		{Task: kerneltest.Task{PID: 57, Policy: 7, Comm: "fifteen letters"}, Online: true, NrRunning: 3,
			Clock: 1234567890, SCXFlags: 1, SCXTasks: 2},
		{Task: kerneltest.Task{Comm: "swapper/1"}, Online: true, Clock: 1e9},
		{Task: kerneltest.Task{Comm: "swapper/2"}},
	}}
}

// facts is what is to be read of it.
func facts() []introspect.CPU {
	return []introspect.CPU{
		{Index: 0, Online: true, NrRunning: 3, Clock: 1234567890 * time.Nanosecond, PID: 57, Comm: "fifteen letters",
			Policy: 7, SCX: &introspect.SCX{Flags: 1, NrRunning: 2}},
		{Index: 1, Online: true, Idle: true, Clock: time.Second, Comm: "swapper/1", SCX: &introspect.SCX{}},
		{Index: 2, Idle: true, Comm: "swapper/2", SCX: &introspect.SCX{}},
	}
}

// look reads what a kernel in memory says of its CPUs.
func look(k *introspect.Kernel, mem *guestmem.Memory, cpus int) ([]introspect.CPU, error) {
	v, err := k.Open(mem)
	if err != nil {
		return nil, err
	}
	return v.Look(nil, cpus)
}

func wantFacts(t *testing.T, k *introspect.Kernel, err error, mem *guestmem.Memory, want []introspect.CPU) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	got, err := look(k, mem, len(want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func memoryOf(t testing.TB, region guestmem.Region) *guestmem.Memory {
	t.Helper()
	mem, err := guestmem.New(region)
	if err != nil {
		t.Fatal(err)
	}
	return mem
}

var architectures = []string{"x86_64", "arm64"}

// Symbols come from the kernel's own table in memory, in the orders of all versions, or from its vmlinux, also if it
// has moved itself and runs at other addresses.
func TestLook(t *testing.T) {
	for _, arch := range architectures {
		for name, change := range map[string]func(*kerneltest.Kernel){
			"Linux 6.1":  func(k *kerneltest.Kernel) { k.Order = kerneltest.Linux61 },
			"Linux 6.2":  func(k *kerneltest.Kernel) { k.Order = kerneltest.Linux62 },
			"Linux 6.12": func(k *kerneltest.Kernel) { k.Order = kerneltest.Linux612 },
			"moved":      func(k *kerneltest.Kernel) { k.Moved = 2 << 20 },
			"slid":       func(k *kerneltest.Kernel) { k.Slid = 6 << 20 },
			"both":       func(k *kerneltest.Kernel) { k.Moved, k.Slid = 2<<20, 8<<20 },
		} {
			t.Run(arch+"/"+name, func(t *testing.T) {
				kernel := running(arch)
				change(&kernel)
				mem := kernel.Memory(t)
				k, err := introspect.ReadMemory(context.Background(), mem, arch)
				wantFacts(t, k, err, mem, facts())
				k, err = introspect.ReadVmlinux(bytes.NewReader(kernel.Vmlinux(t)))
				wantFacts(t, k, err, mem, facts())
			})
		}
	}
}

func paging(page uint, levels int, bits uint) kerneltest.Paging {
	return kerneltest.Paging{Page: page, Levels: levels, Bits: bits}
}

// All the page tables that kernels have are walked.
func TestPageTables(t *testing.T) {
	for arch, pagings := range map[string][]kerneltest.Paging{
		"x86_64": {paging(12, 4, 48), paging(12, 5, 57)},
		"arm64": {paging(12, 3, 39), paging(12, 4, 48), paging(12, 5, 52),
			paging(14, 3, 47), paging(14, 4, 48), paging(16, 2, 42), paging(16, 3, 48), paging(16, 3, 52)},
	} {
		for _, p := range pagings {
			t.Run(fmt.Sprintf("%s/%d-%d-%d", arch, p.Page, p.Levels, p.Bits), func(t *testing.T) {
				kernel := running(arch)
				kernel.Paging = p
				mem := kernel.Memory(t)
				k, err := introspect.ReadMemory(context.Background(), mem, arch)
				wantFacts(t, k, err, mem, facts())
			})
		}
	}
}

// A kernel without sched_ext has nothing to say of it.
func TestWithoutSchedExt(t *testing.T) {
	for _, arch := range architectures {
		kernel := running(arch)
		kernel.NoSCX = true
		want := facts()
		for i := range want {
			want[i].SCX = nil
		}
		mem := kernel.Memory(t)
		k, err := introspect.ReadMemory(context.Background(), mem, arch)
		wantFacts(t, k, err, mem, want)
	}
}

// What is missing is said.
func TestMissing(t *testing.T) {
	for _, arch := range architectures {
		for _, c := range []struct {
			name   string
			change func(*kerneltest.Kernel)
			want   error
		}{
			{"functions only", func(k *kerneltest.Kernel) { k.NoData = true }, introspect.ErrSymbols},
			{"no types", func(k *kerneltest.Kernel) { k.NoTypes = true }, introspect.ErrTypes},
		} {
			kernel := running(arch)
			c.change(&kernel)
			if _, err := introspect.ReadMemory(context.Background(), kernel.Memory(t), arch); !errors.Is(err, c.want) {
				t.Errorf("%s, %s, in memory: %v, want %v", arch, c.name, err, c.want)
			}
			if _, err := introspect.ReadVmlinux(bytes.NewReader(kernel.Vmlinux(t))); !errors.Is(err, c.want) {
				t.Errorf("%s, %s, vmlinux: %v, want %v", arch, c.name, err, c.want)
			}
		}
		kernel := running(arch)
		empty := memoryOf(t, guestmem.Region{Base: kernel.Base(), Mem: make([]byte, kerneltest.Size)})
		if _, err := introspect.ReadMemory(context.Background(), empty, arch); !errors.Is(err, introspect.ErrSymbols) {
			t.Errorf("%s, empty memory: %v", arch, err)
		}
		k, err := introspect.ReadVmlinux(bytes.NewReader(kernel.Vmlinux(t)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Open(empty); !errors.Is(err, introspect.ErrNotThere) ||
			!strings.Contains(err.Error(), fmt.Sprintf("from %v to 0x", kernel.Base())) {
			t.Errorf("%s, a kernel that is not there: %v", arch, err)
		}
		mem := kernel.Memory(t)
		if cpus, err := look(k, mem, len(kernel.CPUs)+1); len(cpus) != len(kernel.CPUs) || err == nil {
			t.Errorf("%s, a CPU that the kernel does not know: %d CPUs, %v", arch, len(cpus), err)
		}
		if _, err := introspect.ReadMemory(context.Background(), mem, "riscv"); !errors.Is(err, introspect.ErrSymbols) {
			t.Errorf("an unknown architecture: %v", err)
		}
	}
	if _, err := introspect.ReadVmlinux(bytes.NewReader([]byte("MZ"))); !errors.Is(err, introspect.ErrSymbols) {
		t.Errorf("no ELF file: %v", err)
	}
}

// A vmlinux is of the kernel that the guest runs, or is not used.
func TestAnotherKernelsVmlinux(t *testing.T) {
	kernel := running("x86_64")
	file := bytes.Replace(kernel.Vmlinux(t), []byte("6.12.0-test"), []byte("6.12.1-test"), 1)
	k, err := introspect.ReadVmlinux(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(kernel.Memory(t)); !errors.Is(err, introspect.ErrNotThere) {
		t.Errorf("%v, want %v", err, introspect.ErrNotThere)
	}
}

// A kernel that has not set up its CPUs yet, and one whose page tables lead nowhere.
func TestEarly(t *testing.T) {
	kernel := running("x86_64")
	k, err := introspect.ReadVmlinux(bytes.NewReader(kernel.Vmlinux(t)))
	if err != nil {
		t.Fatal(err)
	}
	kernel.CPUs = nil
	if cpus, err := look(k, kernel.Memory(t), 1); err == nil {
		t.Errorf("%v of a kernel that has no run queues", cpus)
	}
	region := running("x86_64").Region(t)
	clear(region.Mem[kerneltest.RootAt:][:4096])
	if _, err := k.Open(memoryOf(t, region)); !errors.Is(err, introspect.ErrUnmapped) {
		t.Errorf("without page tables: %v, want %v", err, introspect.ErrUnmapped)
	}
}

func BenchmarkLook(b *testing.B) {
	kernel := kerneltest.Kernel{Arch: "x86_64"}
	for range 32 {
		kernel.CPUs = append(kernel.CPUs, running("x86_64").CPUs[0])
	}
	mem := kernel.Memory(b)
	k, err := introspect.ReadMemory(context.Background(), mem, "x86_64")
	if err != nil {
		b.Fatal(err)
	}
	v, err := k.Open(mem)
	if err != nil {
		b.Fatal(err)
	}
	var cpus []introspect.CPU
	b.ReportAllocs()
	for b.Loop() {
		if cpus, err = v.Look(cpus[:0], 32); err != nil {
			b.Fatal(err)
		}
	}
}

// Who does not wait any more is not kept: nothing is found then, whatever is there.
func TestReadMemoryEndsWithItsContext(t *testing.T) {
	kernel := running("x86_64")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k, err := introspect.ReadMemory(ctx, kernel.Memory(t), "x86_64")
	if k != nil || !errors.Is(err, introspect.ErrSymbols) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", k, err)
	}
}
