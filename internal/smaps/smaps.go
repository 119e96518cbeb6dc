// Package smaps reads a process's memory mappings, for benchmarks and tests: proc(5), /proc/PID/smaps.
package smaps

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Mapping is one of a process's mappings.
type Mapping struct {
	Start, End uint64 // addresses
	Name       string // of the file, or what the kernel calls it; may be empty
	Memfd      bool   // it maps a memfd
	RSS        int    // KiB
	Huge       int    // KiB of RSS that are in transparent huge pages
	NoDump     bool   // it is left out of core dumps
}

// Size returns the mapping's length in bytes.
func (m Mapping) Size() uint64 { return m.End - m.Start }

// Read returns a process's mappings, sorted by address.
func Read(pid int) ([]Mapping, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	var all []Mapping
	for line := range strings.Lines(string(text)) {
		var m Mapping
		if n, _ := fmt.Sscanf(line, "%x-%x", &m.Start, &m.End); n == 2 {
			if fields := strings.Fields(line); len(fields) > 5 {
				m.Name = fields[5]
			}
			m.Memfd = strings.Contains(line, "memfd:")
			// The kernel shows one that has grown since the last read once more.
			if n := len(all); n > 0 && m.Start < all[n-1].End {
				all = all[:n-1]
			}
			all = append(all, m)
		} else if n, _ := fmt.Sscanf(line, "Rss: %d kB", &m.RSS); n == 1 && len(all) > 0 {
			all[len(all)-1].RSS = m.RSS
		} else if n, _ := fmt.Sscanf(line, "AnonHugePages: %d kB", &m.Huge); n == 1 && len(all) > 0 {
			all[len(all)-1].Huge = m.Huge
		} else if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && len(all) > 0 {
			all[len(all)-1].NoDump = slices.Contains(strings.Fields(flags), "dd")
		}
	}
	return all, nil
}
