//go:build linuxbed

package linux

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// shape is a topology in the words of the command line.
type shape struct {
	cpus, llc, numa string
	bed             bool // the bed, which is slow, runs it too
	arm64           bool // for arm64 alone
}

// shapes are the topologies that Linux is asked about. QEMU's x86_64 machine has no dies, and a last-level cache for
// each socket; the bed's x86_64 processor shows no threads on top of that.
var shapes = []shape{
	{cpus: "1"},
	{cpus: "3", bed: true},
	{cpus: "threads=2"},
	{cpus: "sockets=2"},
	{cpus: "cores=2,threads=4"},
	{cpus: "sockets=3,cores=3"},
	{cpus: "sockets=2,cores=2,threads=2"},
	{cpus: "5", numa: "1"},
	{cpus: "sockets=2,cores=2", numa: "2,distance=10:21/31:10", bed: true},
	{cpus: "sockets=2,cores=3,threads=2", numa: "2"},
	{cpus: "sockets=3,threads=2", numa: "3,distance=10:20:30/20:10:40/30:40:10"},
	{cpus: "sockets=4,cores=2", numa: "2,distance=254"},
	{cpus: "sockets=8", numa: "8,distance=15"},
	{cpus: "sockets=2,cores=8,threads=2", numa: "2"},
	{cpus: "sockets=2,dies=2,cores=2", arm64: true},
	{cpus: "4", llc: "cores=2", arm64: true},
	{cpus: "dies=2,cores=2,threads=2", llc: "cores=1", numa: "2,distance=30", arm64: true, bed: true},
}

func (s shape) String() string { return strings.Join([]string{s.cpus, s.llc, s.numa}, ";") }

// flags are those of a run.
func (s shape) flags() []string {
	flags := []string{"--cpus", s.cpus}
	if s.llc != "" {
		flags = append(flags, "--llc", s.llc)
	}
	if s.numa != "" {
		flags = append(flags, "--numa", s.numa)
	}
	return flags
}

// topology is what the flags ask for.
func (s shape) topology(t *testing.T) topology.Topology {
	t.Helper()
	of, err := topology.Parse(s.cpus)
	if err == nil && s.llc != "" {
		of.LLCCores, err = topology.ParseLLC(s.llc)
	}
	if err == nil && s.numa != "" {
		of.Nodes, of.Distances, err = topology.ParseNUMA(s.numa)
	}
	if err == nil {
		of, err = of.WithDefaults()
	}
	if err != nil {
		t.Fatal(err)
	}
	return of
}

// inBed reports whether the suite runs in the bed.
func inBed() bool { return mode == "kvm" && testing.Short() }

// askLinux prints what sysfs says of processors, caches and nodes, as FILE:VALUE, and what memory each node has: Linux,
// Documentation/ABI/stable/sysfs-devices-system-cpu and sysfs-devices-node, ABI/testing/sysfs-devices-system-cpu. It
// takes few processes: 32 emulated processors are slow.
const askLinux = `
	cd /sys/devices/system
	busybox grep -H . cpu/cpu*/topology/*_cpus_list cpu/cpu*/cache/index*/level cpu/cpu*/cache/index*/shared_cpu_list \
		node/node*/cpulist node/node*/distance 2>/dev/null
	busybox awk '/^Node/ { n = $2 + 0 } $1 == "present" { p[n] += $2 }
		END { for (n in p) print "node/node" n "/pages:" p[n] }' /proc/zoneinfo
`

// Linux sees the processors, caches and nodes that were asked for.
func TestTopology(t *testing.T) {
	for _, s := range shapes {
		if inBed() && !s.bed || s.arm64 && arch != "arm64" {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			e := vmmRun(t, append(s.flags(), "--", "busybox", "sh", "-c", askLinux)...)
			if e.code != 0 {
				t.Fatalf("exit code %d, %s", e.code, e.stderr)
			}
			agree(t, s.topology(t), string(e.stdout))
		})
	}
}

// So does util-linux. The bed has no lscpu.
func TestX86Lscpu(t *testing.T) {
	for _, s := range []shape{
		{cpus: "5", numa: "1"},
		{cpus: "sockets=3,threads=2", numa: "3"},
		{cpus: "sockets=2,cores=4,threads=4", numa: "2"},
	} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			e := vmmRun(t, append(s.flags(), "--", "lscpu", "-p=CPU,NODE,SOCKET,CORE,CACHE")...)
			if e.code != 0 {
				t.Fatalf("exit code %d, %s", e.code, e.stderr)
			}
			var table [][]string
			for line := range strings.Lines(string(e.stdout)) {
				if !strings.HasPrefix(line, "#") {
					table = append(table, strings.Split(strings.TrimSpace(line), ","))
				}
			}
			agreeTable(t, s.topology(t), table)
		})
	}
}

// together lists the processors that have the same part as one, in the kernel's format.
func together(of topology.Topology, cpu int, part func(topology.Place) [3]int) string {
	var cpus []int
	for other := range of.CPUs() {
		if part(of.Place(other)) == part(of.Place(cpu)) {
			cpus = append(cpus, other)
		}
	}
	return affinity.Format(cpus)
}

func socketOf(p topology.Place) [3]int { return [3]int{p.Socket} }
func dieOf(p topology.Place) [3]int    { return [3]int{p.Socket, p.Die} }
func coreOf(p topology.Place) [3]int   { return [3]int{p.Socket, p.Die, p.Core} }
func llcOf(p topology.Place) [3]int    { return [3]int{p.LLC} }

// agree compares what Linux said with what was asked for.
func agree(t *testing.T, of topology.Topology, said string) {
	t.Helper()
	parts := map[string]func(topology.Place) [3]int{
		"core_cpus_list": coreOf, "package_cpus_list": socketOf, "die_cpus_list": dieOf,
	}
	if arch == "arm64" { // where a die is a cluster
		parts["cluster_cpus_list"] = dieOf
	}
	files, processors, caches, nodes := map[string]string{}, map[int]int{}, map[int]map[int][]string{}, map[string]string{}
	for line := range strings.Lines(said) {
		path, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		files[path] = value
	}
	for path, value := range files {
		dir, name := filepath.Split(path)
		var cpu, index, node int
		if n, _ := fmt.Sscanf(dir, "node/node%d/", &node); n == 1 {
			nodes[fmt.Sprint(name, node)] = value
		}
		if n, _ := fmt.Sscanf(dir, "cpu/cpu%d/topology/", &cpu); n == 1 && parts[name] != nil {
			processors[cpu]++
			if want := together(of, cpu, parts[name]); value != want {
				t.Errorf("%s of CPU %d is %s, want %s", name, cpu, value, want)
			}
		}
		if n, _ := fmt.Sscanf(dir, "cpu/cpu%d/cache/index%d/", &cpu, &index); n == 2 && name == "shared_cpu_list" {
			if caches[cpu] == nil {
				caches[cpu] = map[int][]string{}
			}
			level := integer(t, files[dir+"level"])
			caches[cpu][level] = append(caches[cpu][level], value)
		}
	}
	if len(processors) != of.CPUs() || processors[0] < 2 {
		t.Errorf("of %d CPUs: %v\n%s", of.CPUs(), processors, said)
	}
	agreeCaches(t, of, caches)
	agreeNodes(t, of, nodes)
}

func integer(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// agreeCaches: the last level is shared as was asked for, a second level by a core's threads, and a first by them or by
// none: what a device tree says begins behind it. (For an emulated AMD, in the bed, Linux knows of no caches.)
func agreeCaches(t *testing.T, of topology.Topology, caches map[int]map[int][]string) {
	t.Helper()
	if len(caches) != of.CPUs() && !(inBed() && arch == "x86_64" && len(caches) == 0) {
		t.Errorf("%d of %d CPUs have caches", len(caches), of.CPUs())
	}
	for cpu, levels := range caches {
		last := 0
		for level := range levels {
			last = max(last, level)
		}
		core, llc := together(of, cpu, coreOf), together(of, cpu, llcOf)
		for level, lists := range levels {
			for _, list := range lists {
				switch {
				case level == last && last > 1 && list == llc, level < last && list == core, level == 1 && list == fmt.Sprint(cpu):
				default:
					t.Errorf("CPU %d, cache of level %d of %d: shared by %s; its core is %s, those of its last level %s", cpu,
						level, last, list, core, llc)
				}
			}
		}
	}
}

// agreeNodes: Linux has a node where it was told of none.
func agreeNodes(t *testing.T, of topology.Topology, got map[string]string) {
	t.Helper()
	const memory, ring, page, unit = 512 << 20, 16 << 20, 4 << 10, 2 << 20
	all := together(of, 0, func(topology.Place) [3]int { return [3]int{} })
	want := map[string]string{"cpulist0": all, "distance0": "10"}
	nodes := max(of.Nodes, 1)
	share := (memory - ring) / nodes
	for node := range nodes {
		if of.Nodes > 0 {
			first := node * of.CPUs() / nodes
			want[fmt.Sprint("cpulist", node)] = together(of, first, func(p topology.Place) [3]int { return [3]int{p.Node} })
			want[fmt.Sprint("distance", node)] = strings.Trim(fmt.Sprint(of.Distances[node]), "[]")
		}
		key, most := fmt.Sprint("pages", node), share
		if node == nodes-1 {
			most += ring + nodes*unit
		}
		if bytes := integer(t, got[key]) * page; bytes < share-2*unit || bytes > most {
			t.Errorf("node %d has %d bytes, want %d to %d", node, bytes, share-2*unit, most)
		}
		delete(got, key)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("nodes are %v, want %v", got, want)
	}
}

// agreeTable: nodes, sockets and cores are counted in order, caches have names of their own.
func agreeTable(t *testing.T, of topology.Topology, table [][]string) {
	t.Helper()
	if len(table) != of.CPUs() {
		t.Fatalf("lscpu has %d of %d CPUs: %v", len(table), of.CPUs(), table)
	}
	for cpu, row := range table {
		if len(row) < 5 || row[0] != fmt.Sprint(cpu) {
			t.Fatalf("lscpu says %v of CPU %d", row, cpu)
		}
		p := of.Place(cpu)
		if !slices.Equal(row[1:4], []string{fmt.Sprint(p.Node), fmt.Sprint(p.Socket), fmt.Sprint(cpu / of.Threads)}) {
			t.Errorf("lscpu says %v of CPU %d, which is at %+v", row, cpu, p)
		}
		last := len(row) - 1 // the last cache is of the last level
		for other := range table[:cpu] {
			if same := row[last] == table[other][last]; same != (of.Place(cpu).LLC == of.Place(other).LLC) {
				t.Errorf("lscpu says %v and %v of CPUs %d and %d", row, table[other], cpu, other)
			}
		}
	}
}
