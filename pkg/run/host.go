package run

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what a run ran on, as far as the host says.
type Host struct {
	Name   string
	OS     string // PRETTY_NAME of os-release(5)
	Kernel string // the release
	CPU    string // the processors' model
	CPUs   int    // that the process may run on
	Memory uint64 // bytes
}

// Invocation is how the program was called, so that a report's reader can do it again.
type Invocation struct {
	Args []string
	Dir  string
	Env  []string // NAME=VALUE, of the variables that the program reads
}

// readHost asks the host. What it does not say is left empty.
func readHost() (h Host) {
	h.CPUs = runtime.NumCPU()
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		h.Name, h.Kernel = unix.ByteSliceToString(name.Nodename[:]), unix.ByteSliceToString(name.Release[:])
	}
	h.OS = strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"'`)
	h.CPU = field("/proc/cpuinfo", "model name", ":")
	kib, _, _ := strings.Cut(field("/proc/meminfo", "MemTotal", ":"), " ")
	if n, err := strconv.ParseUint(kib, 10, 54); err == nil {
		h.Memory = n << 10
	}
	return h
}

// field returns the value of a file's first line with a name, or "".
func field(file, name, separator string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), separator)
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
