// Package testenv says what a test cannot do without, and asks in one place what this host has. Where something
// is missing the test is skipped, in CI as well: whether it ran elsewhere, in the bed, is known to the summary of
// "make test" alone, which fails there for a test that ran nowhere.
package testenv

import (
	"os/exec"
	"testing"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// The attributes that say on which back end a test runs and for which architecture, for the tests' summary, where its
// name does not.
const (
	backend      = "backend"
	architecture = "arch"
)

// Machine is a back end and the architecture of the guest that it runs.
type Machine struct {
	Backend vm.Backend
	Arch    string
}

// EachMachine runs a test of the embedded guest on each back end for each architecture that it runs, as a subtest
// named BACKEND/ARCHITECTURE; one that this host does not have skips it. KVM runs its host's architecture alone.
func EachMachine(t *testing.T, test func(*testing.T, Machine)) {
	t.Helper()
	t.Run((kvm.Backend{}).Name(), func(t *testing.T) {
		t.Run(kernel.HostArch(), func(t *testing.T) {
			kvmFor(t, kernel.HostArch())
			test(t, Machine{kvm.Backend{}, kernel.HostArch()})
		})
	})
	t.Run((qemu.Backend{}).Name(), func(t *testing.T) {
		for _, arch := range guest.Architectures {
			t.Run(arch, func(t *testing.T) { test(t, Machine{emulatorFor(t, arch), arch}) })
		}
	})
}

// EachBackend runs a test with x86_64 code of its own on each back end, as a subtest with the back end's name; one
// that this host does not have skips it.
func EachBackend(t *testing.T, test func(*testing.T, vm.Backend)) {
	t.Helper()
	EachBackendOf(t, "x86_64", test)
}

// EachBackendOf is EachBackend for code of an architecture.
func EachBackendOf(t *testing.T, arch string, test func(*testing.T, vm.Backend)) {
	t.Helper()
	t.Run((kvm.Backend{}).Name(), func(t *testing.T) {
		t.Attr(architecture, arch)
		kvmFor(t, arch)
		test(t, kvm.Backend{})
	})
	t.Run((qemu.Backend{}).Name(), func(t *testing.T) { test(t, EmulatorOf(t, arch)) })
}

// Backend returns a back end for a test of an x86_64 guest that can do with any.
func Backend(t testing.TB) vm.Backend {
	t.Helper()
	if (kvm.Backend{}).Check(x86.Board{}) == nil {
		return kvm.Backend{}
	}
	return Emulator(t)
}

// KVM is for tests of KVM alone, with guests of the host's architecture.
func KVM(t testing.TB) {
	t.Helper()
	t.Attr(backend, (kvm.Backend{}).Name())
	t.Attr(architecture, kernel.HostArch())
	kvmFor(t, kernel.HostArch())
}

func kvmFor(t testing.TB, arch string) {
	t.Helper()
	if err := (kvm.Backend{}).Check(kernel.Board(arch)); err != nil {
		Missing(t, "a usable /dev/kvm", err)
	}
}

// Emulator is for tests of x86_64 guests on the emulator alone. There is none in the bed.
func Emulator(t testing.TB) qemu.Backend {
	t.Helper()
	return EmulatorOf(t, "x86_64")
}

// EmulatorOf is Emulator for guests of an architecture.
func EmulatorOf(t testing.TB, arch string) qemu.Backend {
	t.Helper()
	t.Attr(backend, (qemu.Backend{}).Name())
	t.Attr(architecture, arch)
	return emulatorFor(t, arch)
}

func emulatorFor(t testing.TB, arch string) qemu.Backend {
	t.Helper()
	if _, err := (qemu.Backend{}).Find(kernel.Board(arch)); err != nil {
		Missing(t, "QEMU", err)
	}
	return qemu.Backend{}
}

// EmulatorMissing says why this host has no emulator of x86_64; nil where it has one.
func EmulatorMissing() error {
	_, err := (qemu.Backend{}).Find(x86.Board{})
	return err
}

// Tool is for tests that run a program; it returns the program's path.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name, err)
	}
	return path
}

// Missing skips the test for lack of what err says.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	t.Skipf("this test needs %s: %v", what, err)
}
