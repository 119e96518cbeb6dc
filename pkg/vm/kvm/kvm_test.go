package kvm

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// The kernel's answers to opening /dev/kvm or making a machine become three errors, each with
// what to do. A busy KVM can't be had on demand, so this is inside the package.
func TestDeviceErrors(t *testing.T) {
	for errno, want := range map[unix.Errno]struct {
		err  error
		hint string
	}{
		unix.ENOENT: {ErrNoKVM, "load the kvm_intel or kvm_amd module"},
		unix.ENODEV: {ErrNoKVM, "load the kvm_intel or kvm_amd module"},
		unix.EACCES: {ErrPermission, "join the group"},
		unix.EPERM:  {ErrPermission, "join the group"},
		unix.EBUSY:  {ErrBusy, "stop it"},
		unix.ENOMEM: {vm.ErrSetup, "memory"},
	} {
		err := deviceError("/dev/kvm", errno)
		if !errors.Is(err, want.err) || !errors.Is(err, errno) || !strings.Contains(err.Error(), want.hint) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

func TestMissingCapabilityIsNamed(t *testing.T) {
	t.Attr("backend", "kvm") // as internal/testenv does, which this package's own tests can't import
	fd, err := openKVM(DefaultDevice)
	if err != nil {
		t.Skipf("this test needs a usable /dev/kvm: %v", err)
	}
	defer unix.Close(fd)
	err = checkCapabilities(fd, []Capability{{"KVM_CAP_USER_MEMORY", 3}, {"KVM_CAP_OF_ANOTHER_ARCHITECTURE", 64}})
	if !errors.Is(err, ErrCapability) || !strings.Contains(err.Error(), "[KVM_CAP_OF_ANOTHER_ARCHITECTURE]") {
		t.Error(err)
	}
}
