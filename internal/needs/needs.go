// Package needs says what a test cannot do without, and asks in one place what this host has. Where something
// is missing the test is skipped. "make test" runs elsewhere what it can, and its summary fails in CI where a test ran
// nowhere; a test that is run by itself with CI set fails at once.
package needs

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// backend is the attribute that says on which back end a test runs, for the tests' summary.
const backend = "backend"

// Board is the board of the guests that tests run where any will do: one that the host's KVM runs.
func Board() vm.Board {
	if runtime.GOARCH == "arm64" {
		return arm64.Board{}
	}
	return x86.Board{}
}

// Demo is the embedded guest for Board.
func Demo() (vm.Loader, error) {
	image, err := guest.Demo(Board().Arch())
	if err != nil {
		return nil, err
	}
	return kernel.Open(bytes.NewReader(image), kernel.Options{})
}

// EachBackend runs a test of guests for Board on each back end, as a subtest with the back end's name; one that this
// host does not have skips it.
func EachBackend(t *testing.T, test func(*testing.T, vm.Backend)) {
	t.Helper()
	EachBackendOf(t, Board(), test)
}

// EachBackendOf is EachBackend for guests of a board.
func EachBackendOf(t *testing.T, board vm.Board, test func(*testing.T, vm.Backend)) {
	t.Helper()
	t.Run((kvm.Backend{}).Name(), func(t *testing.T) {
		kvmFor(t, board)
		test(t, kvm.Backend{})
	})
	t.Run((qemu.Backend{}).Name(), func(t *testing.T) { test(t, emulatorFor(t, board)) })
}

// Backend returns a back end for a test of guests for Board that can do with any.
func Backend(t testing.TB) vm.Backend {
	t.Helper()
	if (kvm.Backend{}).Check(Board()) == nil {
		return kvm.Backend{}
	}
	return Emulator(t)
}

// KVM is for tests of KVM alone.
func KVM(t testing.TB) {
	t.Helper()
	kvmFor(t, Board())
}

func kvmFor(t testing.TB, board vm.Board) {
	t.Helper()
	t.Attr(backend, (kvm.Backend{}).Name())
	if err := (kvm.Backend{}).Check(board); err != nil {
		t.Skipf("this test needs a usable /dev/kvm: %v", err)
	}
}

// Emulator is for tests of the emulator alone. There is none in the bed, which needs one itself.
func Emulator(t testing.TB) qemu.Backend {
	t.Helper()
	return emulatorFor(t, Board())
}

func emulatorFor(t testing.TB, board vm.Board) qemu.Backend {
	t.Helper()
	t.Attr(backend, (qemu.Backend{}).Name())
	if _, err := (qemu.Backend{}).Find(board); err != nil {
		if (kvm.Backend{}).Check(Board()) == nil {
			t.Skipf("this test needs QEMU: %v", err)
		}
		Missing(t, "QEMU", err)
	}
	return qemu.Backend{}
}

// EmulatorMissing says why this host has no emulator; nil where it has one.
func EmulatorMissing() error {
	_, err := (qemu.Backend{}).Find(Board())
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

// Missing skips the test, or fails it in CI, for lack of what err says.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s: %v", what, err)
	}
	t.Skipf("this test needs %s: %v", what, err)
}
