package linux

import (
	"errors"
	"fmt"
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
)

var errNoVmlinux = errors.New("there is no vmlinux beside the kernel")

// Symbols reads the symbols and types of the guest's kernel from its vmlinux, where there is one beside the kernel, or
// else from its System.map. It fails with introspect.ErrTypes where there are no types, and returns the symbols all the
// same.
func (g Guest) Symbols() (*introspect.Kernel, error) {
	found, err := kernel.Find(g.Kernel)
	if err != nil {
		return nil, err
	}
	path := found.Vmlinux
	if path == "" {
		path = found.SystemMap
	}
	if path == "" {
		return nil, errNoVmlinux
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if found.Vmlinux != "" {
		return introspect.ReadVmlinux(file)
	}
	k, err := introspect.ReadSystemMap(file)
	if err != nil { // that of a distribution may be a line which says where the real one is
		return nil, fmt.Errorf("%w; %s: %w", errNoVmlinux, path, err)
	}
	return k, fmt.Errorf("%w: %w, and %s has none", introspect.ErrTypes, errNoVmlinux, path)
}
