package fdt

import (
	"fmt"
	"slices"

	"github.com/u-root/u-root/pkg/dt"
)

// clusterSize is how many processors the lowest level of affinity counts, in KVM and in QEMU.
const clusterSize = 16

func (m Machine) checkTopology() error {
	t := m.Topology
	if most := min(MaxCPUs, m.Devices.Redistributors.Size/RedistributorSize); uint64(t.CPUs()) > most {
		return fmt.Errorf("%w: %d, it can be 1 to %d with redistributors of %s",
			ErrCPUs, t.CPUs(), most, m.Devices.Redistributors)
	}
	if len(m.Nodes) != t.Nodes || t.Nodes > 0 && !slices.Equal(runs(slices.Concat(m.Nodes...)), runs(m.all())) {
		return fmt.Errorf("%w: the memory of %d NUMA nodes is %v, all of it is %v, for %d nodes",
			ErrMemory, len(m.Nodes), m.Nodes, m.all(), t.Nodes)
	}
	return nil
}

// all is RAM with the ring: what is reserved is a part of memory.
func (m Machine) all() []Range { return append(slices.Clone(m.RAM), m.Ring) }

// runs joins ranges that follow each other.
func runs(ranges []Range) (joined []Range) {
	for _, r := range ranges {
		if last := len(joined) - 1; last >= 0 && joined[last].End() == r.Start {
			joined[last].Size += r.Size
		} else {
			joined = append(joined, r)
		}
	}
	return joined
}

// memory is section 3.4, and with NUMA nodes binding numa.txt.
func (m Machine) memory() (nodes []*dt.Node) {
	describe := func(memory []Range, more ...dt.Property) {
		for _, r := range runs(memory) {
			n := node("memory", r.Start, text("device_type", "memory"), reg(r))
			n.Properties = append(n.Properties, more...)
			nodes = append(nodes, n)
		}
	}
	if m.Topology.Nodes == 0 {
		describe(m.all())
	}
	for i, memory := range m.Nodes {
		describe(memory, cells("numa-node-id", uint32(i)))
	}
	return nodes
}

// distances is binding numa.txt.
func (m Machine) distances() *dt.Node {
	var matrix []uint32
	for from, row := range m.Topology.Distances {
		for to, d := range row {
			matrix = append(matrix, uint32(from), uint32(to), uint32(d))
		}
	}
	return dt.NewNode("distance-map", dt.WithProperty(
		text("compatible", "numa-distance-map-v1"),
		cells("distance-matrix", matrix...),
	))
}

// cpus is section 3.7; binding arm/cpus.yaml. A processor's address is its affinity, lowest level first, which
// KVM and QEMU count alike; what it is a part of is told by cpu-map and the caches.
func (m Machine) cpus() *dt.Node {
	t := m.Topology
	n := dt.NewNode("cpus", dt.WithProperty(cells("#address-cells", 1), cells("#size-cells", 0)))
	n.Children = append(n.Children, m.cpuMap())
	for i := range t.CPUs() {
		affinity := uint32(i/clusterSize<<8 | i%clusterSize)
		cpu := node("cpu", uint64(affinity),
			text("device_type", "cpu"),
			text("compatible", "arm,armv8"),
			cells("reg", affinity),
			text("enable-method", "psci"),
			cells("next-level-cache", m.phandleL2(i)),
			cells("phandle", phandleCPU(i)),
		)
		if t.Nodes > 0 {
			cpu.Update(cells("numa-node-id", uint32(t.Place(i).Node)))
		}
		n.Children = append(n.Children, cpu)
	}
	n.Children = append(n.Children, m.caches()...)
	return n
}

// cpuMap is binding cpu/cpu-topology.txt, whose clusters are dies.
func (m Machine) cpuMap() *dt.Node {
	t := m.Topology
	tree := dt.NewNode("cpu-map")
	at := func(parent *dt.Node, kind string, index int) *dt.Node { // makes it when it comes to it
		if index == len(parent.Children) {
			parent.Children = append(parent.Children, dt.NewNode(fmt.Sprint(kind, index)))
		}
		return parent.Children[index]
	}
	for i := range t.CPUs() {
		p := t.Place(i)
		leaf := at(at(at(tree, "socket", p.Socket), "cluster", p.Die), "core", p.Core)
		if t.Threads > 1 {
			leaf = at(leaf, "thread", p.Thread)
		}
		leaf.Update(cells("cpu", phandleCPU(i)))
	}
	return tree
}

// caches is section 3.9: behind the first level, which is a processor's own, a second level for each core, and a third
// for those that share the last.
func (m Machine) caches() (nodes []*dt.Node) {
	t := m.Topology
	cache := func(level, index int, phandle uint32, more ...dt.Property) {
		nodes = append(nodes, dt.NewNode(fmt.Sprintf("l%d-cache%d", level, index), dt.WithProperty(append([]dt.Property{
			text("compatible", "cache"),
			cells("cache-level", uint32(level)),
			flag("cache-unified"),
			cells("phandle", phandle),
		}, more...)...)))
	}
	for cpu := 0; cpu < t.CPUs(); cpu += t.Threads {
		cache(2, cpu/t.Threads, m.phandleL2(cpu), cells("next-level-cache", m.phandleL3(t.Place(cpu).LLC)))
	}
	for i := range t.LLCs() {
		cache(3, i, m.phandleL3(i))
	}
	return nodes
}

// The references to a processor, its second level of cache, and a last level.

func phandleCPU(cpu int) uint32 { return uint32(phandleCPUs + cpu) }

func (m Machine) phandleL2(cpu int) uint32 {
	return uint32(phandleCPUs + m.Topology.CPUs() + cpu/m.Topology.Threads)
}

func (m Machine) phandleL3(llc int) uint32 { return m.phandleL2(m.Topology.CPUs()) + uint32(llc) }
