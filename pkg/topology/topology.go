// Package topology describes how a guest's processors are arranged: in sockets, dies, cores and threads, by the
// last-level caches that they share, and in NUMA nodes. It is a value: what shows it to a guest is elsewhere.
//
// Processors are numbered in order: the threads of a core follow each other, then come the next core's.
package topology

import (
	"errors"
	"fmt"
	"math/bits"
)

// What a topology can have at most.
const (
	MaxCPUs    = 512
	MaxNodes   = 64
	maxThreads = 8
)

// Distances between NUMA nodes: ACPI specification 6.4, section 5.2.17, "System Locality Information Table".
const (
	LocalDistance       = 10  // of a node to itself, and of nothing else
	DefaultDistance     = 20  // between two nodes
	UnreachableDistance = 255 // between nodes that do not see each other
)

// ErrTopology means that there can be no such topology.
var ErrTopology = errors.New("bad topology")

// Topology says how processors are arranged. A zero value of a field is a default; the zero Topology is one processor.
type Topology struct {
	Sockets int // 0: 1
	Dies    int // of a socket; 0: 1
	Cores   int // of a die; 0: 1
	Threads int // of a core, a power of two up to 8; 0: 1
	// LLCCores is how many cores share a last-level cache, a divisor of Cores; 0: all of a die's.
	LLCCores int
	// Nodes is how many NUMA nodes there are; 0: the guest is told of none. A node is one or more sockets, or a socket
	// is one or more nodes: whole dies, or whole last-level caches of a die.
	Nodes int
	// Distances has a row for each node: the distances from it to each node, LocalDistance to itself alone, otherwise
	// 11 to 255. Nil: DefaultDistance between any two.
	Distances [][]uint8
}

// OfCores returns the topology of n processors without further structure: one socket of n cores.
func OfCores(n int) Topology { return Topology{Sockets: 1, Dies: 1, Cores: n, Threads: 1, LLCCores: n} }

// WithDefaults returns t with its zero values replaced by their defaults, except Nodes, which may be 0. It fails with
// ErrTopology.
func (t Topology) WithDefaults() (Topology, error) {
	for _, field := range []*int{&t.Sockets, &t.Dies, &t.Cores, &t.Threads} {
		if *field == 0 {
			*field = 1
		}
	}
	if t.LLCCores == 0 {
		t.LLCCores = t.Cores
	}
	if t.Nodes > 0 && t.Distances == nil {
		t.Distances = Distance(t.Nodes, DefaultDistance)
	}
	return t, t.check()
}

func (t Topology) check() error {
	cpus := 1
	for _, part := range []struct {
		name  string
		count int
	}{{"sockets", t.Sockets}, {"dies", t.Dies}, {"cores", t.Cores}, {"threads", t.Threads}} {
		if part.count < 1 || part.count > MaxCPUs {
			return fmt.Errorf("%w: %d %s, it can be 1 to %d", ErrTopology, part.count, part.name, MaxCPUs)
		}
		if cpus *= part.count; cpus > MaxCPUs {
			return fmt.Errorf("%w: %s are more than %d processors", ErrTopology, t, MaxCPUs)
		}
	}
	switch {
	case t.Threads > maxThreads || t.Threads&(t.Threads-1) != 0:
		return fmt.Errorf("%w: %d threads of a core, it can be 1, 2, 4 or 8", ErrTopology, t.Threads)
	case t.LLCCores < 1 || t.Cores%t.LLCCores != 0:
		return fmt.Errorf("%w: %d cores share a last-level cache, it has to be a divisor of a die's %d cores",
			ErrTopology, t.LLCCores, t.Cores)
	}
	return t.checkNodes()
}

func (t Topology) checkNodes() error {
	if t.Nodes < 0 || t.Nodes > MaxNodes {
		return fmt.Errorf("%w: %d NUMA nodes, it can be 1 to %d", ErrTopology, t.Nodes, MaxNodes)
	}
	if t.Nodes > 0 && !t.divides() {
		return fmt.Errorf("%w: %d NUMA nodes of %s with %d last-level caches: a node has to be whole sockets, or whole dies "+
			"of one socket, or whole last-level caches of one die, and as many in each node",
			ErrTopology, t.Nodes, t, t.LLCs())
	}
	if len(t.Distances) != t.Nodes {
		return fmt.Errorf("%w: %d rows of distances for %d NUMA nodes", ErrTopology, len(t.Distances), t.Nodes)
	}
	for from, row := range t.Distances {
		if len(row) != t.Nodes {
			return fmt.Errorf("%w: %d distances from node %d to %d NUMA nodes", ErrTopology, len(row), from, t.Nodes)
		}
		for to, d := range row {
			if from == to && d != LocalDistance || from != to && d <= LocalDistance {
				return fmt.Errorf("%w: distance %d from node %d to node %d: it is %d to itself, %d to %d to another",
					ErrTopology, d, from, to, LocalDistance, LocalDistance+1, UnreachableDistance)
			}
		}
	}
	return nil
}

// divides reports whether nodes and what the processors are made of have the same boundaries.
func (t Topology) divides() bool {
	nodes := t.Nodes
	for _, parts := range []int{t.Sockets, t.Dies} {
		if parts%nodes == 0 {
			return true
		}
		if nodes%parts != 0 {
			return false
		}
		nodes /= parts
	}
	return t.Cores/t.LLCCores%nodes == 0
}

// CPUs returns the number of processors.
func (t Topology) CPUs() int { return t.Sockets * t.socket() }

// LLCs returns the number of last-level caches.
func (t Topology) LLCs() int { return t.CPUs() / max(t.llc(), 1) }

// How many processors there are in a last-level cache, a die, a socket.
func (t Topology) llc() int    { return t.LLCCores * t.Threads }
func (t Topology) die() int    { return t.Cores * t.Threads }
func (t Topology) socket() int { return t.Dies * t.die() }

// Place says where a processor is. Sockets, last-level caches and nodes are counted over the whole machine, the others
// within what they are a part of.
type Place struct {
	Socket, Die, Core, Thread int
	LLC                       int
	Node                      int // 0 if there are no nodes
}

// Place returns where processor cpu is.
func (t Topology) Place(cpu int) Place {
	p := Place{
		Socket: cpu / t.socket(),
		Die:    cpu % t.socket() / t.die(),
		Core:   cpu % t.die() / t.Threads,
		Thread: cpu % t.Threads,
		LLC:    cpu / t.llc(),
	}
	if t.Nodes > 0 {
		p.Node = cpu / (t.CPUs() / t.Nodes)
	}
	return p
}

// Shifts says how many low bits of an x86 APIC ID name a processor within each level: thread 0 to 0, and so on. Each
// level takes as many bits as it needs: SDM volume 3, section 9.9, "Hierarchical Mapping of Shared Resources".
type Shifts struct {
	Core, LLC, Die, Socket int // APIC ID >> Core names the core, >> LLC the last-level cache, and so on
}

// Shifts returns the shifts of t's APIC IDs.
func (t Topology) Shifts() (s Shifts) {
	s.Core = width(t.Threads)
	s.LLC = s.Core + width(t.LLCCores)
	s.Die = s.LLC + width(t.Cores/t.LLCCores)
	s.Socket = s.Die + width(t.Dies)
	return s
}

// APICID returns the APIC ID of processor cpu. They grow with the processor's number, and have gaps where a part's
// number is no power of two.
func (t Topology) APICID(cpu int) uint32 {
	p, s := t.Place(cpu), t.Shifts()
	return uint32(p.Socket<<s.Socket | p.Die<<s.Die | p.Core/t.LLCCores<<s.LLC | p.Core%t.LLCCores<<s.Core | p.Thread)
}

// width is the number of bits that tell n things apart.
func width(n int) int { return bits.Len(uint(n - 1)) }

// Distance returns the distances of n nodes with the same distance between any two of them.
func Distance(n int, between uint8) [][]uint8 {
	rows := make([][]uint8, n)
	for i := range rows {
		rows[i] = make([]uint8, n)
		for j := range rows[i] {
			rows[i][j] = between
		}
		rows[i][i] = LocalDistance
	}
	return rows
}

// String returns the arrangement as Parse reads it: without caches and nodes.
func (t Topology) String() string {
	return fmt.Sprintf("sockets=%d,dies=%d,cores=%d,threads=%d", t.Sockets, t.Dies, t.Cores, t.Threads)
}
