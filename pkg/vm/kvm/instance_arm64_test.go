package kvm_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
)

var board = arm64.Board{}

var reset = arm64.Code{0x52800120, 0x72b08000, 0xd4000002, 0x14000000} // mov w0, PSCI's SYSTEM_RESET; hvc 0; b .

// An access to nothing ends the machine: the error says which, and carries the registers.
func TestAccessToNothing(t *testing.T) {
	const to = 0x52a40001 // mov w1, 512 MiB
	for name, tc := range map[string]struct {
		guest arm64.Code
		says  []string
	}{
		// mov w2, 42; strb w2, [x1]
		"store": {arm64.Code{to, 0x52800542, 0x39000022}, []string{"write of 1 bytes at 0x20000000", "x2=0x2a"}},
		// ldr x2, [x1]
		"load": {arm64.Code{to, 0xf9400022}, []string{"read of 8 bytes at 0x20000000", "pc=0x40200004"}},
		// mov w1, 0x9001000; ldr w2, [x1]
		"behind the UART": {arm64.Code{0x52a12001, 0x72820001, 0xb9400022}, []string{"read of 4 bytes at 0x9001000"}},
		// ldp x2, x3, [x1]: KVM is not told what it does.
		"of two registers": {arm64.Code{to, 0xa9400c22}, []string{"KVM_RUN on vCPU 0", "far_el1="}},
	} {
		exits, err := ends(t, append(tc.guest, 0x14000000))
		if !errors.Is(err, vm.ErrRun) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: ended by %v", name, err)
		}
		for _, want := range append(tc.says, "x1=0x", "esr_el1=0x", "pstate=0x") {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %s in %v", name, want, err)
			}
		}
		if name != "of two registers" && exits["mmio"] != 1 {
			t.Errorf("%s: exits %v", name, exits)
		}
	}
}

// Exits are counted by their reason.
func TestExitsAreCounted(t *testing.T) {
	// mov w1, UART; strb w1, [x1], twice; reset
	exits, err := ends(t, append(arm64.Code{0x52a12001, 0x39000021, 0x39000021}, reset...))
	if !errors.Is(err, vm.ErrReset) || exits["mmio"] != 2 || exits["system_event"] != 1 {
		t.Errorf("ended by %v, exits %v", err, exits)
	}
}

// Memory that this host's KVM has no addresses for is refused, as the board's limit is.
func TestTooMuchMemory(t *testing.T) {
	testenv.KVM(t)
	_, err := vm.New(vm.Config{Kernel: reset, Backend: kvm.Backend{}, Memory: 2 << 40})
	if !errors.Is(err, vm.ErrConfig) {
		t.Error(err)
	}
}
