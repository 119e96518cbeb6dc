package linux

import (
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/introspect"
)

// Symbols reads the symbols and types of the guest's kernel from its file, where that is a vmlinux that has them.
func (g Guest) Symbols() (*introspect.Kernel, error) {
	file, err := os.Open(g.Kernel)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return introspect.ReadVmlinux(file)
}
