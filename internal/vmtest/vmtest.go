// Package vmtest has what the tests of machines share: waiting for a machine's end, and listing the processes that
// machines consist of.
package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// HangLimit bounds what takes no time unless it hangs; it is generous because a host may be busy.
const HangLimit = 60 * time.Second

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
