package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// pin pins the threads of the processors. They are all there, with their names, when the firmware runs. It fails with
// vm.ErrRun.
func (m *instance) pin() error {
	if len(m.pinned) == 0 {
		return nil
	}
	tasks := fmt.Sprintf("/proc/%d/task", m.cmd.Process.Pid)
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return fmt.Errorf("%w: pinning its processors: %w", vm.ErrRun, err)
	}
	found := 0
	for _, thread := range threads {
		name, err := os.ReadFile(filepath.Join(tasks, thread.Name(), "comm"))
		if err != nil {
			continue // it has ended
		}
		task := strings.TrimSpace(string(name))
		cpus := m.pinning(task)
		if cpus == nil {
			continue
		}
		id, err := strconv.Atoi(thread.Name())
		if err == nil {
			err = affinity.Pin(id, cpus...)
		}
		if err != nil {
			return fmt.Errorf("%w: pinning %s: %w", vm.ErrRun, task, err)
		}
		found++
	}
	if found == 0 {
		return fmt.Errorf("%w: QEMU has no thread of a processor to pin", vm.ErrRun)
	}
	return nil
}

// pinning is what a thread of QEMU's is pinned to, by its name; nil for one that runs no processor.
func (m *instance) pinning(name string) []int {
	if name == "ALL CPUs/TCG" { // they take turns
		return m.pinned
	}
	var cpu int
	if n, _ := fmt.Sscanf(name, "CPU %d/TCG", &cpu); n != 1 || cpu < 0 {
		return nil
	}
	return []int{m.pinned[cpu%len(m.pinned)]}
}
