package x86

import (
	"errors"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

func find(t *testing.T, entries []CPUIDEntry, function, index uint32) CPUIDEntry {
	t.Helper()
	for _, e := range entries {
		if e.Function == function && e.Index == index {
			return e
		}
	}
	t.Fatalf("no leaf 0x%x index %d", function, index)
	return CPUIDEntry{}
}

// The guest sees its own processors, whatever the host has.
func TestCPUIDTopology(t *testing.T) {
	host := []CPUIDEntry{
		{Function: 0, Eax: 0x1f},
		{Function: 1, Ebx: 0x10408, Edx: hyperThread | 1},
		{Function: 4, Eax: 0xfc00c121},
		{Function: 0xb, Flags: 1, Eax: 1, Ebx: 2, Ecx: 0x100, Edx: 77},
		{Function: 0x1f, Flags: 1, Eax: 1, Ebx: 2, Ecx: 0x100, Edx: 77},
		{Function: 0x40000000, Eax: 0x40000001},
		{Function: 0x80000008, Eax: 0x3028, Ecx: 0x700f},
		{Function: 0x8000001e, Ebx: 0x100},
	}
	for _, tc := range []struct {
		id, n                               int
		features, caches, cores, amd, shift uint32
	}{
		{0, 1, 0x00010408, 0x00000121, 1, 0, 0},
		{2, 3, 0x02040408, 0x0c000121, 3, 0x2002, 2},
		{31, 32, 0x1f200408, 0x7c000121, 32, 0x501f, 5},
	} {
		got := CPUID(host, tc.id, topology.OfCores(tc.n), true, 2_000_000)
		if e := find(t, got, 1, 0); e.Ebx != tc.features || e.Ecx != hypervisor|tscDeadline ||
			e.Edx&hyperThread != 0 != (tc.n > 1) {
			t.Errorf("vCPU %d of %d: leaf 1 is %#x", tc.id, tc.n, e)
		}
		if e := find(t, got, 4, 0); e.Eax != tc.caches {
			t.Errorf("vCPU %d of %d: leaf 4 is %#x", tc.id, tc.n, e)
		}
		if e := find(t, got, 0xb, 0); e.Eax != 0 || e.Ebx != 1 || e.Ecx != 0x100 || e.Edx != uint32(tc.id) {
			t.Errorf("vCPU %d of %d: threads are %#x", tc.id, tc.n, e)
		}
		if e := find(t, got, 0xb, 1); e.Eax != tc.shift || e.Ebx != tc.cores || e.Ecx != 0x201 || e.Edx != uint32(tc.id) {
			t.Errorf("vCPU %d of %d: cores are %#x", tc.id, tc.n, e)
		}
		if e := find(t, got, 0xb, 2); e.Ebx != 0 || e.Ecx != 2 {
			t.Errorf("vCPU %d of %d: the last level is %#x", tc.id, tc.n, e)
		}
		if e := find(t, got, 0x80000008, 0); e.Ecx != tc.amd || e.Eax != 0x3028 {
			t.Errorf("vCPU %d of %d: leaf 0x80000008 is %#x", tc.id, tc.n, e)
		}
		if e := find(t, got, 0x40000010, 0); e.Eax != 2_000_000 || find(t, got, 0x40000000, 0).Eax != 0x40000010 {
			t.Errorf("vCPU %d of %d: the TSC's frequency is %#x", tc.id, tc.n, e)
		}
	}
	if host[1].Ecx != 0 {
		t.Error("the host's entries were changed")
	}
}

// One socket has one last-level cache, whoever made the host's processor, and whoever shares what there. What
// comes before it is each core's own.
func TestOneSocketHasOneLastLevelCache(t *testing.T) {
	const sharing = 0xfff << 14
	caches := func(leaf uint32, levels ...uint32) (entries []CPUIDEntry) {
		for i, level := range levels { // 0x121: the first level's data; here 16 share each in the host
			entries = append(entries, CPUIDEntry{Function: leaf, Index: uint32(i), Flags: 1, Eax: 0x101 | level<<5 | 15<<14})
		}
		return append(entries, CPUIDEntry{Function: leaf, Index: uint32(len(levels)), Flags: 1})
	}
	for name, tc := range map[string]struct {
		host   []CPUIDEntry
		leaf   uint32
		shared uint32 // the level
	}{
		"Intel":             {caches(4, 1, 1, 2, 3), 4, 3},
		"Intel without L3":  {caches(4, 1, 1, 2), 4, 2},
		"Intel with one":    {caches(4, 1), 4, 0},
		"AMD":               {caches(0x8000001d, 1, 1, 2, 3), 0x8000001d, 3},
		"AMD without an L3": {caches(0x8000001d, 1, 1, 2), 0x8000001d, 2},
	} {
		// less one: Intel's room, AMD's number
		for n, sharers := range map[int][2]uint32{1: {0, 0}, 3: {3, 2}, 4: {3, 3}, 32: {31, 31}} {
			want := sharers[0]
			if tc.leaf == 0x8000001d {
				want = sharers[1]
			}
			for i, e := range CPUID(tc.host, n-1, topology.OfCores(n), true, 0)[:len(tc.host)] {
				level := e.Eax >> 5 & 7
				switch got := e.Eax & sharing >> 14; {
				case tc.host[i].Eax == 0 && e.Eax != 0:
					t.Errorf("%s, %d cores: the end of the list is %#x", name, n, e)
				case e.Eax&0x3fff != tc.host[i].Eax&0x3fff:
					t.Errorf("%s, %d cores: cache %d is %#x", name, n, i, e)
				case level == tc.shared && level != 0 && got != want, level != tc.shared && got != 0:
					t.Errorf("%s, %d cores: cache %d of level %d is shared by %d", name, n, i, level, got+1)
				}
			}
		}
	}
}

// AMD's own leaves count the same cores, and no threads.
func TestAMDCountsCoresAndNoThreads(t *testing.T) {
	host := []CPUIDEntry{
		{Function: 0, Ebx: 0x68747541, Ecx: 0x444d4163, Edx: 0x69746e65},
		{Function: 1, Edx: hyperThread},
		{Function: 0x80000001, Ecx: 1 << 22},
		{Function: 0x80000008, Ecx: 0x700f},
		{Function: 0x8000001e, Eax: 77, Ebx: 0x100, Ecx: 0x301},
		{Function: 0x80000026, Flags: 1, Eax: 1, Ebx: 2, Ecx: 0x100, Edx: 77},
	}
	for n, legacy := range map[int]uint32{1: 0, 2: 2, 32: 2} {
		got := CPUID(host, n-1, topology.OfCores(n), true, 0)
		if e := find(t, got, 0x80000001, 0); e.Ecx != 1<<22|legacy {
			t.Errorf("%d cores: leaf 0x80000001 is %#x", n, e)
		}
		if e := find(t, got, 0x80000008, 0); e.Ecx&0xff != uint32(n-1) || 1<<(e.Ecx>>12&0xf) < n {
			t.Errorf("%d cores: leaf 0x80000008 is %#x", n, e)
		}
		id := uint32(n - 1)
		if e := find(t, got, 0x8000001e, 0); e.Eax != id || e.Ebx != id || e.Ecx != 0 {
			t.Errorf("%d cores: leaf 0x8000001e is %#x", n, e)
		}
		for _, e := range got {
			if e.Function == 0x80000026 {
				t.Errorf("%d cores: the host's levels are shown: %#x", n, e)
			}
		}
	}
	host[0].Ebx = 0x756e6547 // Intel's has no such bit
	if e := find(t, CPUID(host, 1, topology.OfCores(2), true, 0), 0x80000001, 0); e.Ecx != 1<<22 {
		t.Errorf("Intel: leaf 0x80000001 is %#x", e)
	}
}

// hosts are what KVM supports on hosts of the two vendors, as far as topology goes.
var hosts = map[string][]CPUIDEntry{
	"Intel": {
		{Function: 0, Eax: 0x16, Ebx: 0x756e6547},
		{Function: 1, Ebx: 0x10408},
		{Function: 4, Index: 0, Flags: 1, Eax: 0xfc00c121},
		{Function: 4, Index: 1, Flags: 1, Eax: 0xfc00c143},
		{Function: 4, Index: 2, Flags: 1, Eax: 0xfc03c163},
		{Function: 4, Index: 3, Flags: 1},
		{Function: 0xb, Flags: 1},
		{Function: 0x80000008},
	},
	"AMD": {
		{Function: 0, Eax: 0x10, Ebx: 0x68747541},
		{Function: 1, Ebx: 0x10408},
		{Function: 0x80000001, Ecx: topologyExtensions},
		{Function: 0x80000008},
		{Function: 0x8000001d, Index: 0, Flags: 1, Eax: 0x4121},
		{Function: 0x8000001d, Index: 1, Flags: 1, Eax: 0x4143},
		{Function: 0x8000001d, Index: 2, Flags: 1, Eax: 0x1c163},
		{Function: 0x8000001d, Index: 3, Flags: 1},
		{Function: 0x8000001e, Ebx: 0x100, Ecx: 0x301},
	},
}

// Two sockets of two dies of six cores of two threads, three cores to a last-level cache: 4 bits each for what is in a
// die, a die's bit, a socket's.
func TestCPUIDOfDiesAndThreads(t *testing.T) {
	machine, err := topology.Topology{Sockets: 2, Dies: 2, Cores: 6, Threads: 2, LLCCores: 3}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	const cpu, id = 47, 0x20 | 0x10 | 0x8 | 2<<1 | 1
	type registers struct{ eax, ebx, ecx, edx uint32 }
	both := map[[2]uint32]registers{
		{0xb, 0}:        {1, 2, 1 << 8, id},
		{0xb, 1}:        {5, 24, 2<<8 | 1, id},
		{0xb, 2}:        {0, 0, 2, id},
		{0x1f, 0}:       {1, 2, 1 << 8, id},
		{0x1f, 1}:       {4, 12, 2<<8 | 1, id},
		{0x1f, 2}:       {5, 24, 5<<8 | 2, id},
		{0x1f, 3}:       {0, 0, 3, id},
		{1, 0}:          {0, id<<24 | 32<<16 | 0x408, hypervisor, hyperThread},
		{0x80000008, 0}: {0, 0, 5<<12 | 23, 0},
	}
	for vendor, leaves := range map[string]map[[2]uint32]registers{
		"Intel": {
			{0, 0}: {0x1f, 0x756e6547, 0, 0},
			{4, 0}: {15<<26 | 1<<14 | 0x121, 0, 0, 0},
			{4, 1}: {15<<26 | 1<<14 | 0x143, 0, 0, 0},
			{4, 2}: {15<<26 | 7<<14 | 0x163, 0, 0, 0},
			{4, 3}: {},
		},
		"AMD": {
			{0, 0}:          {0x1f, 0x68747541, 0, 0},
			{0x80000001, 0}: {0, 0, coresNotThreads | topologyExtensions, 0},
			{0x8000001d, 0}: {1<<14 | 0x121, 0, 0, 0},
			{0x8000001d, 1}: {1<<14 | 0x143, 0, 0, 0},
			{0x8000001d, 2}: {5<<14 | 0x163, 0, 0, 0},
			{0x8000001d, 3}: {},
			{0x8000001e, 0}: {id, 1<<8 | id>>1, 1<<8 | 3, 0},
		},
	} {
		got := CPUID(hosts[vendor], cpu, machine, false, 0)
		for _, want := range []map[[2]uint32]registers{both, leaves} {
			for leaf, r := range want {
				e := find(t, got, leaf[0], leaf[1])
				if (registers{e.Eax, e.Ebx, e.Ecx, e.Edx}) != r {
					t.Errorf("%s: leaf 0x%x index %d is %#x, want %#x", vendor, leaf[0], leaf[1], e, r)
				}
			}
		}
		if len(got) != len(hosts[vendor])+len(both)-2-map[string]int{"Intel": 1}[vendor] {
			t.Errorf("%s: %d entries: %#x", vendor, len(got), got)
		}
		for _, e := range CPUID(hosts[vendor], 0, topology.OfCores(2), false, 0) {
			if e.Function == 0x1f || e.Function == 0 && e.Eax == 0x1f {
				t.Errorf("%s: without dies there is leaf 0x1f: %#x", vendor, e)
			}
		}
	}
}

// A processor that can't show threads is not asked to.
func TestCheckCPUID(t *testing.T) {
	old := []CPUIDEntry{{Function: 0, Ebx: 0x68747541}}
	threads, err := topology.Topology{Threads: 2}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	dies, err := topology.Topology{Dies: 3}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		host []CPUIDEntry
		t    topology.Topology
		want error
	}{
		"AMD":                    {hosts["AMD"], threads, nil},
		"Intel":                  {hosts["Intel"], threads, nil},
		"AMD without extensions": {old, threads, vm.ErrConfig},
		"but with cores":         {old, topology.OfCores(4), nil},
		"AMD with three dies":    {hosts["AMD"], dies, vm.ErrConfig},
	} {
		if err := CheckCPUID(tc.host, tc.t); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}
