// Package kernel tells by a kernel's file which board it is built for.
package kernel

import (
	"io"
	"runtime"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// Board returns the board of an architecture, as package guest names it; nil if guests do not have it.
func Board(arch string) vm.Board {
	return map[string]vm.Board{"x86_64": x86.Board{}, "arm64": arm64.Board{}}[arch]
}

// HostArch returns this host's architecture, as guests are called; on one that guests do not have, x86_64.
func HostArch() string {
	if runtime.GOARCH == "arm64" {
		return "arm64"
	}
	return "x86_64"
}

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
