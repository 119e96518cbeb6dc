package linux_test

import (
	"os"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/linux"
)

// The packages of one "go test" have names of their own, whatever their programs are called.
func TestNameIsTheTestedPackage(t *testing.T) {
	for want, command := range map[string][]string{
		"github.com/ktstr/ktstr-vmm/pkg/linux": {os.Args[0], "-test.v"},
		"uname -a":                             {"uname", "-a"},
		"/nonexistent/program x":               {"/nonexistent/program", "x"},
		"":                                     nil,
	} {
		if got := (linux.Guest{Command: command}).Name(); got != want {
			t.Errorf("%q: %q, want %q", command, got, want)
		}
	}
}
