package x86

import (
	"fmt"
	"slices"

	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Leaves of CPUID: SDM volume 2, CPUID, and AMD's manual 24594 volume 3, appendix E.
const (
	leafFeatures     = 1
	leafCaches       = 4
	leafTopology     = 0xb        // threads and cores
	leafTopologyV2   = 0x1f       // dies, too
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
	// As well: leaves 0x8000001d and 0x8000001e mean something.
	topologyExtensions = 1 << 22

	cacheShape = 0x3fff // EAX of a leaf of caches: type, level and the like; above it is who shares the cache
)

// CPUIDEntry is one leaf of CPUID.
type CPUIDEntry struct {
	Function, Index, Flags uint32 // flag 1: the index counts
	Eax, Ebx, Ecx, Edx     uint32
}

// CPUID returns what processor cpu sees of a machine's topology if its back end can show it the host's entries. What a
// core's threads share, they alone do, but for the last level of cache, which is shared as the topology says, so that a
// tester of schedulers knows of it. (On the first Zen, family 0x17 up to model 0x1f, Linux assumes that 8 APIC IDs form
// a complex with its own last-level cache, whatever CPUID says.) The deadline mode of the APIC's timer is shown if
// deadline is set, which says that the back end has it, and the TSC's frequency if tscKHz is not 0.
func CPUID(host []CPUIDEntry, cpu int, t topology.Topology, deadline bool, tscKHz uint32) []CPUIDEntry {
	id, place, shift, socket := t.APICID(cpu), t.Place(cpu), t.Shifts(), uint32(t.CPUs()/t.Sockets)
	entries := slices.Clone(host)
	for i := range entries {
		e := &entries[i]
		switch e.Function {
		case 0:
			if t.Dies > 1 {
				e.Eax = max(e.Eax, leafTopologyV2) // the leaf that knows of dies
			}
		case leafFeatures:
			e.Ebx = e.Ebx&0xffff | id<<24 | min(uint32(1)<<shift.Socket, 255)<<16
			e.Edx &^= hyperThread
			if socket > 1 {
				e.Edx |= hyperThread
			}
			e.Ecx |= hypervisor
			if deadline {
				e.Ecx |= tscDeadline
			}
		case leafCaches: // how many APIC IDs the sharers have room in
			if e.Eax != 0 {
				room := uint32(1) << shift.Core
				if e.cacheLevel() == lastCache(host, leafCaches) {
					room = 1 << shift.LLC
				}
				e.Eax = e.Eax&cacheShape | min(uint32(1)<<(shift.Socket-shift.Core)-1, 63)<<26 | (room-1)<<14
			}
		case leafAMDCaches: // how many sharers there are
			if e.Eax != 0 {
				sharers := uint32(t.Threads)
				if e.cacheLevel() == lastCache(host, leafAMDCaches) {
					sharers = uint32(t.LLCCores * t.Threads)
				}
				e.Eax = e.Eax&cacheShape | (sharers-1)<<14
			}
		case leafAMDFeatures:
			e.Ecx &^= coresNotThreads
			if socket > 1 && isAMD(host) {
				e.Ecx |= coresNotThreads
			}
		case leafHypervisor:
			e.Eax = max(e.Eax, leafTiming)
		case leafAMDSizes:
			e.Ecx = uint32(shift.Socket)<<12 | (socket - 1)
		case leafAMDTopology: // which AMD calls a die of a socket, a node of a processor
			e.Eax, e.Ebx = id, uint32(t.Threads-1)<<8|id>>shift.Core&0xff
			e.Ecx = uint32(t.Dies-1)<<8 | uint32(place.Socket*t.Dies+place.Die)
		}
	}
	// The host has the first level of the topology alone, or its own.
	entries = slices.DeleteFunc(entries, func(e CPUIDEntry) bool {
		return e.Function == leafTopology || e.Function == leafTopologyV2 || e.Function == leafAMDLevels
	})
	entries = append(entries, levels(leafTopology, id,
		level{1, shift.Core, t.Threads}, level{2, shift.Socket, int(socket)})...)
	if t.Dies > 1 {
		entries = append(entries, levels(leafTopologyV2, id,
			level{1, shift.Core, t.Threads}, level{2, shift.Die, t.Cores * t.Threads}, level{5, shift.Socket, int(socket)})...)
	}
	if tscKHz > 0 {
		entries = append(entries, CPUIDEntry{Function: leafTiming, Eax: tscKHz})
	}
	return entries
}

// CheckCPUID reports why a guest would not see its topology in what CPUID makes of the host's entries. It fails with
// vm.ErrConfig.
func CheckCPUID(host []CPUIDEntry, t topology.Topology) error {
	if !isAMD(host) {
		return nil
	}
	if t.Dies > 4 || t.Dies == 3 {
		return fmt.Errorf("%w: %s: a socket of AMD's has 1, 2 or 4 dies", vm.ErrConfig, t)
	}
	extended := slices.ContainsFunc(host, func(e CPUIDEntry) bool {
		return e.Function == leafAMDFeatures && e.Ecx&topologyExtensions != 0
	})
	if !extended && (t.Threads > 1 || t.Dies > 1 || t.LLCCores < t.Cores) {
		return fmt.Errorf("%w: %s with %d last-level caches: the host's processor, an AMD without the topology extensions, "+
			"shows a guest on KVM sockets and cores alone", vm.ErrConfig, t, t.LLCs())
	}
	return nil
}

// level is a level of leaves 0xb and 0x1f: its type, how many bits of the APIC ID name what is below the next level,
// and how many processors that has.
type level struct{ kind, shift, cpus int }

func levels(leaf, id uint32, list ...level) (entries []CPUIDEntry) {
	for i, l := range append(list, level{}) { // the last one says that there are no more
		entries = append(entries, CPUIDEntry{Function: leaf, Index: uint32(i), Flags: significantIndex,
			Eax: uint32(l.shift), Ebx: uint32(l.cpus), Ecx: uint32(l.kind<<8 | i), Edx: id})
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
