package x86

import (
	"math/bits"
	"slices"
)

// Leaves of CPUID: SDM volume 2, CPUID, and AMD's manual 24594 volume 3, appendix E.
const (
	leafFeatures     = 1
	leafCaches       = 4
	leafTopology     = 0xb
	leafTopologyV2   = 0x1f
	leafHypervisor   = 0x40000000 // the highest leaf of its range
	leafTiming       = 0x40000010 // the TSC's frequency in kHz, a convention of several hypervisors
	leafAMDFeatures  = 0x80000001
	leafAMDSizes     = 0x80000008
	leafAMDCaches    = 0x8000001d // as leaf 4
	leafAMDTopology  = 0x8000001e
	leafAMDLevels    = 0x80000026 // as leaf 0xb
	significantIndex = 1          // of CPUIDEntry.Flags

	// Features that a hypervisor leaves to its machine to show, ECX of leaf 1. The APIC's timer can fire at a value of
	// the TSC, so that no guest has to measure the APIC's frequency; and the leaves from 0x40000000 on
	// mean something.
	tscDeadline = 1 << 24
	hypervisor  = 1 << 31
	hyperThread = 1 << 28 // EDX of leaf 1: its count of APIC IDs is valid
	// ECX of leaf 0x80000001, on AMD: what leaf 1 counts are cores, not threads.
	coresNotThreads = 1 << 1

	cacheShape = 0x3fff // EAX of a leaf of caches: type, level and the like; above it is who shares the cache
)

// CPUIDEntry is one leaf of CPUID.
type CPUIDEntry struct {
	Function, Index, Flags uint32 // flag 1: the index counts
	Eax, Ebx, Ecx, Edx     uint32
}

// CPUID returns what processor id of n sees if its back end can show it the host's entries: one package of n cores with
// one thread each. The cores share the last level of cache, so that a tester of schedulers knows of one; each core has
// the lower levels to itself. (On the first Zen, family 0x17 up to model 0x1f, Linux assumes that 8 APIC IDs form a
// complex with its own last-level cache, whatever CPUID says.) The deadline mode of the APIC's timer is shown if
// deadline is set, which says that the back end has it, and the TSC's frequency if tscKHz is not 0.
func CPUID(host []CPUIDEntry, id, n int, deadline bool, tscKHz uint32) []CPUIDEntry {
	shift := uint32(bits.Len(uint(n - 1))) // the bits of the APIC ID that name a core
	entries := slices.Clone(host)
	for i := range entries {
		e := &entries[i]
		switch e.Function {
		case leafFeatures:
			e.Ebx = e.Ebx&0xffff | uint32(id)<<24 | min(uint32(1)<<shift, 255)<<16
			e.Edx &^= hyperThread
			if n > 1 {
				e.Edx |= hyperThread
			}
			e.Ecx |= hypervisor
			if deadline {
				e.Ecx |= tscDeadline
			}
		case leafCaches: // how many APIC IDs the sharers have room in
			if e.Eax != 0 {
				e.Eax = e.Eax&cacheShape | (1<<shift-1)<<26
				if e.cacheLevel() == lastCache(host, leafCaches) {
					e.Eax |= (1<<shift - 1) << 14
				}
			}
		case leafAMDCaches: // how many sharers there are
			if e.Eax != 0 {
				e.Eax &= cacheShape
				if e.cacheLevel() == lastCache(host, leafAMDCaches) {
					e.Eax |= uint32(n-1) << 14
				}
			}
		case leafAMDFeatures:
			e.Ecx &^= coresNotThreads
			if n > 1 && isAMD(host) {
				e.Ecx |= coresNotThreads
			}
		case leafHypervisor:
			e.Eax = max(e.Eax, leafTiming)
		case leafAMDSizes:
			e.Ecx = shift<<12 | uint32(n-1)
		case leafAMDTopology:
			e.Eax, e.Ebx, e.Ecx = uint32(id), uint32(id), 0
		}
	}
	// The host has the first level of the topology alone, or its own.
	entries = slices.DeleteFunc(entries, func(e CPUIDEntry) bool {
		return e.Function == leafTopology || e.Function == leafTopologyV2 || e.Function == leafAMDLevels
	})
	for level, e := range []CPUIDEntry{
		{Ebx: 1, Ecx: 1 << 8},                       // the threads of a core
		{Eax: shift, Ebx: uint32(n), Ecx: 1 | 2<<8}, // the cores of the package
		{Ecx: 2}, // no more
	} {
		e.Function, e.Index, e.Flags, e.Edx = leafTopology, uint32(level), significantIndex, uint32(id)
		entries = append(entries, e)
	}
	if tscKHz > 0 {
		entries = append(entries, CPUIDEntry{Function: leafTiming, Eax: tscKHz})
	}
	return entries
}

// cacheLevel is the level of the cache that an entry describes.
func (e CPUIDEntry) cacheLevel() uint32 { return e.Eax >> 5 & 7 }

// lastCache is the last level of cache that a leaf describes; 0 where there is but the first, which is never
// shared.
func lastCache(entries []CPUIDEntry, leaf uint32) uint32 {
	last := uint32(0)
	for _, e := range entries {
		if level := e.cacheLevel(); e.Function == leaf && level > 1 {
			last = max(last, level)
		}
	}
	return last
}

// isAMD reports whether the processor's vendor is AMD, or Hygon, which makes AMD's: by EBX of leaf 0.
func isAMD(entries []CPUIDEntry) bool {
	return slices.ContainsFunc(entries, func(e CPUIDEntry) bool {
		return e.Function == 0 && (e.Ebx == 0x68747541 || e.Ebx == 0x6f677948) // "Auth", "Hygo"
	})
}
