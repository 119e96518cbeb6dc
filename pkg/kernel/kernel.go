// Package kernel tells by a kernel's file which board it is built for.
package kernel

import (
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// Options are the choices that a board leaves open. The zero value is what works on every kernel.
type Options struct {
	Reservation fdt.Reservation // arm64: how the kernel is kept off the reserved memory
}

// Open returns the loader for a kernel. It fails with vm.ErrKernel for what is none.
func Open(file io.ReaderAt, o Options) (vm.Loader, error) {
	if arm64.IsImage(file) {
		return arm64.Image{File: file, Reservation: o.Reservation}, nil
	}
	return x86.Open(file)
}
