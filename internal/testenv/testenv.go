// Package testenv says what a test cannot do without, and asks in one place what this host has. Where something
// is missing the test is skipped, in CI as well: whether it ran elsewhere, in the bed, is known to the summary of
// "make test" alone, which fails there for a test that ran nowhere.
package testenv

import (
	"os/exec"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// backend is the attribute that says on which back end a test runs, for the tests' summary.
const backend = "backend"

// EachBackend runs a test on each back end, as a subtest with the back end's name; one that this host does not
// have skips it.
func EachBackend(t *testing.T, test func(*testing.T, vm.Backend)) {
	t.Helper()
	t.Run((kvm.Backend{}).Name(), func(t *testing.T) {
		KVM(t)
		test(t, kvm.Backend{})
	})
	t.Run((qemu.Backend{}).Name(), func(t *testing.T) { test(t, Emulator(t)) })
}

// Backend returns a back end for a test that can do with any.
func Backend(t testing.TB) vm.Backend {
	t.Helper()
	if (kvm.Backend{}).Check(x86.Board{}) == nil {
		return kvm.Backend{}
	}
	return Emulator(t)
}

// KVM is for tests of KVM alone.
func KVM(t testing.TB) {
	t.Helper()
	t.Attr(backend, (kvm.Backend{}).Name())
	if err := (kvm.Backend{}).Check(x86.Board{}); err != nil {
		Missing(t, "a usable /dev/kvm", err)
	}
}

// Emulator is for tests of the emulator alone. There is none in the bed.
func Emulator(t testing.TB) qemu.Backend {
	t.Helper()
	t.Attr(backend, (qemu.Backend{}).Name())
	if err := EmulatorMissing(); err != nil {
		Missing(t, "QEMU", err)
	}
	return qemu.Backend{}
}

// EmulatorMissing says why this host has no emulator; nil where it has one.
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
