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
	leafAMDSizes     = 0x80000008
	leafAMDTopology  = 0x8000001e
	significantIndex = 1 // of CPUIDEntry.Flags

	// Features that a hypervisor leaves to its machine to show, ECX of leaf 1. The APIC's timer can fire at a value of
	// the TSC, so that no guest has to measure the APIC's frequency; and the leaves from 0x40000000 on
	// mean something.
	tscDeadline = 1 << 24
	hypervisor  = 1 << 31
	hyperThread = 1 << 28 // EDX of leaf 1: its count of APIC IDs is valid
)

// CPUIDEntry is what a processor says of itself in one leaf of CPUID.
type CPUIDEntry struct {
	Function, Index, Flags uint32 // flag 1: the index counts
	Eax, Ebx, Ecx, Edx     uint32
}

// CPUID is what processor id of n sees where its back end can show it the host's entries: one package of n
// cores, with one thread each. The deadline mode of the APIC's timer is shown where the back end has it,
// the TSC's frequency where that is not 0.
func CPUID(host []CPUIDEntry, id, n int, deadline bool, tscKHz uint32) []CPUIDEntry {
	shift := uint32(bits.Len(uint(n - 1))) // the bits of the APIC ID that name a core
	entries := slices.Clone(host)
	for i := range entries {
		e := &entries[i]
		switch e.Function {
		case leafFeatures:
			e.Ebx = e.Ebx&0xffff | uint32(id)<<24 | 1<<shift<<16
			e.Edx &^= hyperThread
			if n > 1 {
				e.Edx |= hyperThread
			}
			e.Ecx |= hypervisor
			if deadline {
				e.Ecx |= tscDeadline
			}
		case leafCaches: // no cache is shared
			if e.Eax != 0 {
				e.Eax = e.Eax&0x3fff | (1<<shift-1)<<26
			}
		case leafHypervisor:
			e.Eax = max(e.Eax, leafTiming)
		case leafAMDSizes:
			e.Ecx = shift<<12 | uint32(n-1)
		case leafAMDTopology:
			e.Eax, e.Ebx, e.Ecx = uint32(id), uint32(id), 0
		}
	}
	// The host has the first level of the topology alone.
	entries = slices.DeleteFunc(entries, func(e CPUIDEntry) bool {
		return e.Function == leafTopology || e.Function == leafTopologyV2
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
