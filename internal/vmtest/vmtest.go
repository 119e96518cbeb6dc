// Package vmtest has what the tests of machines share: waiting for a machine's end, and listing the processes that
// machines consist of.
package vmtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// HangLimit bounds what takes no time unless it hangs; it is generous because a host may be busy.
const HangLimit = 60 * time.Second

// Demo is the embedded guest for an architecture.
func Demo(t testing.TB, arch string) vm.Loader {
	t.Helper()
	image, err := guest.Demo(arch)
	if err != nil {
		t.Fatal(err)
	}
	loader, err := kernel.Open(bytes.NewReader(image), kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return loader
}

// Traits are what differs between the embedded guests of the architectures and their machines.
type Traits struct {
	TripleFault error  // how a machine ends whose guest has a fault that nothing handles
	RingBase    uint64 // of a machine of the default size
	Rings       int    // of the doorbell, for the end; without one the host's poll finds it
}

// TraitsOf are an architecture's. On arm64 the guest's own vectors catch every fault, and reset the machine.
func TraitsOf(arch string) Traits {
	if arch == "arm64" {
		return Traits{vm.ErrReset, 1<<30 + vm.DefaultMemory - vm.DefaultReserved, 0}
	}
	return Traits{vm.ErrTripleFault, vm.DefaultMemory - vm.DefaultReserved, 1}
}

// End waits for a machine's end and returns the reason.
func End(t testing.TB, m *vm.Machine) error {
	t.Helper()
	select {
	case <-m.Done():
		return m.Wait()
	case <-time.After(HangLimit):
		t.Fatalf("the machine did not end in %v", HangLimit)
		return nil
	}
}

// Children returns the processes that a process has started and not reaped.
func Children(t testing.TB, pid int) []int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		for word := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatalf("%s: %v", list, err)
			}
			children = append(children, child)
		}
	}
	return children
}
