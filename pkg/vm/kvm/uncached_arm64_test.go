package kvm_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
)

// hasFWB says for some processors whether they have FEAT_S2FWB, by implementer and part: their technical reference
// manuals, and QEMU's "max".
var hasFWB = map[string]bool{
	"0x41 0xd03": false, // Cortex-A53
	"0x41 0xd08": false, // Cortex-A72
	"0x41 0xd0c": false, // Neoverse N1
	"0x41 0xd40": true,  // Neoverse V1
	"0x41 0xd49": true,  // Neoverse N2
	"0x41 0xd4f": true,  // Neoverse V2
	"0x00 0x051": true,  // QEMU's max
}

// A host whose caches a guest's Device memory passes by is told from one where it does not.
func TestUncachedMemoryNeedsFWB(t *testing.T) {
	testenv.KVM(t)
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	find := func(field string) string {
		m := regexp.MustCompile(`(?m)^` + field + `\s*: (.*)$`).FindSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in %s", field, text)
		}
		return string(m[1])
	}
	processor := find("CPU implementer") + " " + find("CPU part")
	has, known := hasFWB[processor]
	if !known {
		t.Skipf("whether processor %s has FEAT_S2FWB is not known here", processor)
	}
	err = kvm.Backend{}.CheckUncached()
	if has && err != nil {
		t.Errorf("processor %s: %v", processor, err)
	}
	if !has && (!errors.Is(err, kvm.ErrIncoherent) || !errors.Is(err, vm.ErrUnavailable) ||
		!strings.Contains(err.Error(), "FEAT_S2FWB")) {
		t.Errorf("processor %s: %v", processor, err)
	}
}
