// Package affinity says which CPUs of the host threads may run on, and pins threads to them: sched_setaffinity(2).
package affinity

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrCPU means that a thread can't be pinned to a CPU of the host.
var ErrCPU = errors.New("can't pin to this CPU of the host")

// ErrList means that a list of CPUs can't be read.
var ErrList = errors.New("it is a list of CPUs, such as 0-3,8")

// maxCPU is the number of CPUs that a unix.CPUSet can hold.
const maxCPU = 1024

// Allowed returns the CPUs that this process may use, sorted.
func Allowed() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("asking which CPUs can be used: %w", err)
	}
	var cpus []int
	for cpu := range maxCPU {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// Parse reads a list of CPUs in the kernel's format, Documentation/admin-guide/cputopology.rst: numbers and ranges,
// separated by commas. Their order is kept. It fails with ErrList, or ErrCPU if one is not among allowed.
func Parse(list string, allowed []int) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, errFrom := strconv.ParseUint(first, 10, 16)
		to, errTo := strconv.ParseUint(last, 10, 16)
		if errFrom != nil || errTo != nil || from > to || to >= maxCPU {
			return nil, fmt.Errorf("%w: %q", ErrList, part)
		}
		for cpu := int(from); cpu <= int(to); cpu++ {
			switch {
			case !slices.Contains(allowed, cpu):
				return nil, fmt.Errorf("%w: %d; this process may use %s", ErrCPU, cpu, Format(allowed))
			case slices.Contains(cpus, cpu):
				return nil, fmt.Errorf("%w: %d is there twice", ErrList, cpu)
			}
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// Format returns a list of CPUs as Parse reads it, with ranges where numbers follow each other.
func Format(cpus []int) string {
	var parts []string
	for i := 0; i < len(cpus); {
		last := i
		for last+1 < len(cpus) && cpus[last+1] == cpus[last]+1 {
			last++
		}
		part := strconv.Itoa(cpus[i])
		if last > i {
			part += "-" + strconv.Itoa(cpus[last])
		}
		parts = append(parts, part)
		i = last + 1
	}
	return strings.Join(parts, ",")
}

// Pin lets a thread run on some CPUs alone; thread 0 is the caller's. It fails with ErrCPU.
func Pin(thread int, cpus ...int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(thread, &set); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCPU, Format(cpus), err)
	}
	return nil
}
