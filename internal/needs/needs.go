// Package needs says what a test cannot do without. Where it is missing the test is skipped, and
// in CI it fails: there, everything is installed.
package needs

import (
	"os"
	"os/exec"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// KVM is for tests that run guests.
func KVM(t testing.TB) {
	t.Helper()
	t.Attr("backend", "kvm") // for test/tiers
	if err := vm.CheckDevice(""); err != nil {
		Missing(t, "a usable /dev/kvm", err)
	}
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
