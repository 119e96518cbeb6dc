package linux

import (
	"errors"
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
)

var errNoVmlinux = errors.New("there is no vmlinux beside the kernel")

// Symbols reads the symbols and types of the guest's kernel from its vmlinux, where there is one beside the kernel.
func (g Guest) Symbols() (*introspect.Kernel, error) {
	found, err := kernel.Find(g.Kernel)
	if err != nil {
		return nil, err
	}
	if found.Vmlinux == "" {
		return nil, errNoVmlinux
	}
	file, err := os.Open(found.Vmlinux)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return introspect.ReadVmlinux(file)
}
