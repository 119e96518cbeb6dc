//go:build linuxbed

package linux

import (
	"regexp"
	"strings"
	"testing"
)

// The binary of a release works in a guest that has nothing else for it. There it finds neither KVM nor QEMU, and says
// how a host of its architecture gets them.
func TestRelease(t *testing.T) {
	t.Parallel()
	getKVM, install := "load the kvm_intel or kvm_amd module", "apt install qemu-system-x86"
	if arch == "arm64" {
		getKVM, install = "the firmware has to start it at EL2", "apt install qemu-system-arm"
	}
	e := vmmRun(t, "--", guestVMM, "doctor")
	if e.code != 125 {
		t.Errorf("exit code %d, %s", e.code, e.stderr)
	}
	for line, says := range map[string]string{
		"warn  KVM ": getKVM, "warn  emulator     for " + arch: install, "fail  Linux guests ": "",
	} {
		if !regexp.MustCompile(`(?m)^` + line + `.*` + regexp.QuoteMeta(says)).Match(e.stdout) {
			t.Errorf("doctor: no line %q with %q in\n%s", line, says, e.stdout)
		}
	}
	if arch == "arm64" && strings.Contains(string(e.stdout), "kvm_intel") {
		t.Errorf("doctor speaks of another architecture's modules:\n%s", e.stdout)
	}
}
