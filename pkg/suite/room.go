package suite

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// overhead is what a guest takes of the host's memory beside its own, in bytes: the emulator's, mostly.
const overhead = 192 << 20

// room is what there is for runs. They start in order: one that does not fit waits for those before it, and no later
// one overtakes it.
type room struct {
	jobs    int // that may run at a time; 0: as many as fit
	running int
	cpus    int    // of the host, and free
	memory  uint64 // bytes, of the host, and free
	total   struct {
		cpus   int
		memory uint64
	}
}

func (r *Runner) room() room {
	x := room{jobs: r.Jobs, cpus: runtime.GOMAXPROCS(0), memory: availableMemory()}
	x.total.cpus, x.total.memory = x.cpus, x.memory
	return x
}

// needs are what a run takes; one that is larger than the host takes all of it.
func (m *room) needs(x *Run) (cpus int, memory uint64) {
	return min(x.CPUs, m.total.cpus), min(x.Memory+overhead, m.total.memory)
}

// take takes the room for a run, and reports whether there was enough.
func (m *room) take(x *Run) bool {
	cpus, memory := m.needs(x)
	if m.jobs > 0 && m.running >= m.jobs || m.jobs == 0 && (cpus > m.cpus || memory > m.memory) {
		return false
	}
	if m.jobs == 0 {
		m.cpus, m.memory = m.cpus-cpus, m.memory-memory
	}
	m.running++
	return true
}

// give gives the room back.
func (m *room) give(x *Run) {
	m.running--
	if cpus, memory := m.needs(x); m.jobs == 0 {
		m.cpus, m.memory = m.cpus+cpus, m.memory+memory
	}
}

// availableMemory is how much memory the kernel thinks is available without swapping, and what is left of the limit of
// this process's container if it has one: proc(5), /proc/meminfo; Linux's cgroup-v2 documentation, memory.max and
// memory.current. What is not known does not limit.
func availableMemory() uint64 {
	const unlimited = 1 << 62
	available := uint64(unlimited)
	if f, err := os.Open("/proc/meminfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			var kib uint64
			if n, _ := fmt.Sscanf(s.Text(), "MemAvailable: %d kB", &kib); n == 1 {
				available = kib << 10
			}
		}
	}
	limit, limited := cgroup("memory.max")
	if used, ok := cgroup("memory.current"); limited && ok {
		available = min(available, limit-min(limit, used))
	}
	return available
}

// cgroup reads a number of this process's control group, where it sees its own.
func cgroup(name string) (n uint64, ok bool) {
	text, err := os.ReadFile("/sys/fs/cgroup/" + name)
	if err != nil {
		return 0, false
	}
	n, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}
