package x86

import "testing"

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
		got := CPUID(host, tc.id, tc.n, true, 2_000_000)
		if e := find(t, got, 1, 0); e.Ebx != tc.features || e.Ecx != hypervisor|tscDeadline || e.Edx&hyperThread != 0 != (tc.n > 1) {
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
