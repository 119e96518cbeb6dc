package topology_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// whole is WithDefaults for what must not fail.
func whole(t testing.TB, a topology.Topology) topology.Topology {
	t.Helper()
	a, err := a.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestDefaults(t *testing.T) {
	for _, tc := range []struct{ in, want topology.Topology }{
		{topology.Topology{}, topology.Topology{Sockets: 1, Dies: 1, Cores: 1, Threads: 1, LLCCores: 1}},
		{topology.OfCores(3), topology.Topology{Sockets: 1, Dies: 1, Cores: 3, Threads: 1, LLCCores: 3}},
		{topology.Topology{Sockets: 3, Nodes: 3}, topology.Topology{Sockets: 3, Dies: 1, Cores: 1, Threads: 1, LLCCores: 1,
			Nodes: 3, Distances: [][]uint8{{10, 20, 20}, {20, 10, 20}, {20, 20, 10}}}},
	} {
		if got := whole(t, tc.in); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%+v is %+v, want %+v", tc.in, got, tc.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, a := range map[string]topology.Topology{
		"negative":                    {Cores: -1},
		"too many":                    {Sockets: 513},
		"too many together":           {Sockets: 64, Cores: 9},
		"a product that overflows":    {Sockets: 1 << 31, Dies: 1 << 31, Cores: 4},
		"three threads":               {Threads: 3},
		"sixteen threads":             {Threads: 16},
		"more sharers than cores":     {Cores: 2, LLCCores: 4},
		"cores that none shares":      {Cores: 6, LLCCores: 4},
		"negative sharers":            {LLCCores: -1},
		"negative nodes":              {Nodes: -1},
		"too many nodes":              {Sockets: 65, Nodes: 65},
		"a core in two nodes":         {Threads: 2, Nodes: 2},
		"a cache in two nodes":        {Cores: 2, Nodes: 2},
		"a die in two nodes":          {Dies: 3, Cores: 2, LLCCores: 1, Nodes: 2},
		"a socket in two nodes":       {Sockets: 3, Dies: 2, Nodes: 2},
		"nodes of different size":     {Sockets: 2, Dies: 3, Nodes: 4},
		"distances of no nodes":       {Distances: topology.Distance(1, 10)},
		"a row too few":               {Sockets: 2, Nodes: 2, Distances: [][]uint8{{10, 20}}},
		"a column too few":            {Sockets: 2, Nodes: 2, Distances: [][]uint8{{10, 20}, {20}}},
		"far from itself":             {Nodes: 1, Distances: [][]uint8{{11}}},
		"another that is as near":     {Sockets: 2, Nodes: 2, Distances: topology.Distance(2, 10)},
		"another that is even nearer": {Sockets: 2, Nodes: 2, Distances: topology.Distance(2, 0)},
	} {
		if _, err := a.WithDefaults(); !errors.Is(err, topology.ErrTopology) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is at a limit is within it.
func TestLimits(t *testing.T) {
	whole(t, topology.OfCores(topology.MaxCPUs))
	whole(t, topology.Topology{Sockets: 64, Threads: 8, Nodes: topology.MaxNodes,
		Distances: topology.Distance(64, topology.UnreachableDistance)})
	whole(t, topology.Topology{Sockets: 4, Dies: 4, Cores: 4, LLCCores: 1, Nodes: 64})
	whole(t, topology.Topology{Sockets: 4, Nodes: 2})
}

// APIC IDs by the manuals: each part has as many bits as it takes to tell its kind apart.
func TestAPICIDs(t *testing.T) {
	for _, tc := range []struct {
		a      topology.Topology
		shifts topology.Shifts
		ids    []uint32
	}{
		{topology.OfCores(1), topology.Shifts{}, []uint32{0}},
		{topology.OfCores(3), topology.Shifts{LLC: 2, Die: 2, Socket: 2}, []uint32{0, 1, 2}},
		{topology.Topology{Sockets: 2, Cores: 3, Threads: 2}, topology.Shifts{Core: 1, LLC: 3, Die: 3, Socket: 3},
			[]uint32{0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13}},
		{topology.Topology{Sockets: 2, Dies: 3, Cores: 2}, topology.Shifts{LLC: 1, Die: 1, Socket: 3},
			[]uint32{0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13}},
		{topology.Topology{Cores: 6, LLCCores: 3, Threads: 2}, topology.Shifts{Core: 1, LLC: 3, Die: 4, Socket: 4},
			[]uint32{0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13}},
	} {
		a := whole(t, tc.a)
		var ids []uint32
		for cpu := range a.CPUs() {
			ids = append(ids, a.APICID(cpu))
		}
		if !slices.Equal(ids, tc.ids) || a.Shifts() != tc.shifts {
			t.Errorf("%s, %d to a cache: %d, %+v; want %d, %+v", a, a.LLCCores, ids, a.Shifts(), tc.ids, tc.shifts)
		}
	}
}

func TestPlaces(t *testing.T) {
	a := whole(t, topology.Topology{Sockets: 2, Dies: 2, Cores: 4, Threads: 2, LLCCores: 2, Nodes: 4})
	for cpu, want := range map[int]topology.Place{
		0:  {},
		1:  {Thread: 1},
		7:  {Core: 3, Thread: 1, LLC: 1},
		8:  {Die: 1, LLC: 2, Node: 1},
		31: {Socket: 1, Die: 1, Core: 3, Thread: 1, LLC: 7, Node: 3},
	} {
		if got := a.Place(cpu); got != want {
			t.Errorf("processor %d is at %+v, want %+v", cpu, got, want)
		}
	}
}

// Of each topology of up to 24 processors: two processors have the same ID above a shift if they have that part in
// common, and not otherwise; nothing that a cache or a core is a part of crosses a node.
func TestSharedIDsAreSharedParts(t *testing.T) {
	tried := 0
	for each := range 1 << 13 {
		a := topology.Topology{Sockets: each&3 + 1, Dies: each>>2&3 + 1, Cores: each>>4&7 + 1, Threads: 1 << (each >> 7 & 1),
			LLCCores: each>>8&3 + 1, Nodes: each >> 10}
		a, err := a.WithDefaults()
		if err != nil || a.CPUs() > 24 {
			continue
		}
		tried++
		s, last := a.Shifts(), -1
		for cpu := range a.CPUs() {
			p, id := a.Place(cpu), a.APICID(cpu)
			if int(id) <= last {
				t.Fatalf("%+v: processor %d has APIC ID %d behind %d", a, cpu, id, last)
			}
			last = int(id)
			for other := range cpu {
				q, also := a.Place(other), a.APICID(other)
				socket := p.Socket == q.Socket
				die := socket && p.Die == q.Die
				for level, same := range [][2]bool{
					{socket, id>>s.Socket == also>>s.Socket},
					{die, id>>s.Die == also>>s.Die},
					{p.LLC == q.LLC, id>>s.LLC == also>>s.LLC},
					{die && p.Core == q.Core, id>>s.Core == also>>s.Core},
				} {
					if same[0] != same[1] {
						t.Fatalf("%+v: processors %d and %d, level %d: %v", a, other, cpu, level, same)
					}
				}
				if p.LLC == q.LLC && p.Node != q.Node {
					t.Fatalf("%+v: processors %d and %d share a cache and no node", a, other, cpu)
				}
			}
		}
	}
	if tried < 100 {
		t.Errorf("%d topologies", tried)
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]topology.Topology{
		"4":                                   topology.OfCores(4),
		"sockets=2":                           {Sockets: 2},
		"threads=2,cores=3":                   {Cores: 3, Threads: 2},
		"sockets=2,dies=3,cores=4,threads=8":  {Sockets: 2, Dies: 3, Cores: 4, Threads: 8},
		"sockets=02,dies=1,cores=1,threads=1": {Sockets: 2, Dies: 1, Cores: 1, Threads: 1},
	} {
		if got, err := topology.Parse(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1", "x", "1.5", "4,", "=", "cores", "cores=", "cores=0", "cores=-2",
		"cores=x",
		"cores=2,cores=2", "cores=2,", ",cores=2", "cores=2 ", "Cores=2", "cpus=2", "cores=99999999999999999999"} {
		if got, err := topology.Parse(text); !errors.Is(err, topology.ErrTopology) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestParseLLC(t *testing.T) {
	if n, err := topology.ParseLLC("cores=3"); n != 3 || err != nil {
		t.Error(n, err)
	}
	for _, text := range []string{"", "3", "cores", "cores=", "cores=0", "threads=2", "cores=1,cores=2"} {
		if n, err := topology.ParseLLC(text); !errors.Is(err, topology.ErrTopology) {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}

func TestParseNUMA(t *testing.T) {
	for text, want := range map[string][][]uint8{
		"2":                      nil,
		"2,distance=30":          {{10, 30}, {30, 10}},
		"1,distance=255":         {{10}},
		"2,distance=10:21/31:10": {{10, 21}, {31, 10}},
		"2,distance=10":          {{10, 10}, {10, 10}}, // which Topology refuses
		"3,distance=10:11:12":    {{10, 11, 12}},       // so it does
	} {
		nodes, got, err := topology.ParseNUMA(text)
		if err != nil || fmt.Sprint(nodes) != text[:1] || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %d, %v, %v; want %v", text, nodes, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "65", "x", "2,", "2,30", "2,distance", "2,distance=", "2,distance=9",
		"2,distance=256", "2,distance=10:20/", "2,distance=10:20,20:10", "2,distance=10:20:/20:10"} {
		if nodes, got, err := topology.ParseNUMA(text); !errors.Is(err, topology.ErrTopology) {
			t.Errorf("%q: %d, %v, %v", text, nodes, got, err)
		}
	}
}

// Whatever is read is refused or a topology, which String writes so that it is read again as the same.
func FuzzParse(f *testing.F) {
	for _, seed := range [][3]string{
		{"4", "", ""}, {"sockets=2,dies=2,cores=4,threads=2", "cores=2", "4,distance=30"},
		{"sockets=2", "cores=1", "2,distance=10:20/30:10"}, {"sockets=512", "cores=0", "64,distance=10:/"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, cpus, llc, numa string) {
		a, err := topology.Parse(cpus)
		if err == nil {
			a, err = a.WithDefaults()
		}
		if err == nil && llc != "" {
			if a.LLCCores, err = topology.ParseLLC(llc); err == nil {
				a, err = a.WithDefaults()
			}
		}
		if err == nil && numa != "" {
			if a.Nodes, a.Distances, err = topology.ParseNUMA(numa); err == nil {
				a, err = a.WithDefaults()
			}
		}
		if err != nil {
			if !errors.Is(err, topology.ErrTopology) {
				t.Fatal(err)
			}
			return
		}
		last := a.Place(a.CPUs() - 1)
		if last.LLC != a.LLCs()-1 || last.Socket != a.Sockets-1 || last.Node != max(a.Nodes, 1)-1 {
			t.Fatalf("%+v: the last processor is at %+v", a, last)
		}
		again, err := topology.Parse(a.String())
		if err != nil || again.Sockets != a.Sockets || again.CPUs() != a.CPUs() {
			t.Fatalf("%s is read as %+v, %v", a, again, err)
		}
	})
}
