package vm

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// apiVersion is the only one there is: KVM API, 4.1 KVM_GET_API_VERSION.
const apiVersion = 12

// KVM request numbers that gokvm keeps to itself: KVM API, section 4, and linux/kvm.h.
const (
	reqGetSupportedCPUID = 0x05
	reqSetUserMemory     = 0x46
	reqSetTSSAddr        = 0x47
	reqSetIdentityMap    = 0x48
	reqCreatePIT2        = 0x77
	reqRun               = 0x80
	reqGetRegs           = 0x81
	reqSetRegs           = 0x82
	reqGetSregs          = 0x83
	reqSetSregs          = 0x84
	reqSetMSRs           = 0x89
	reqSetCPUID2         = 0x90
	reqGetTSCKHz         = 0xa3
	reqIRQLine           = 0x61
)

// ioctl calls a KVM request whose argument is a number, again where a signal interrupted it:
// the Go runtime sends itself some.
func ioctl(fd int, req, arg uintptr) (int, error) {
	for {
		n, err := kvm.Ioctl(uintptr(fd), req, arg)
		if !errors.Is(err, unix.EINTR) {
			return int(n), err
		}
	}
}

// ioctlPtr calls a KVM request whose argument is a structure. gokvm turns pointers into
// numbers one call too early, which Go's unsafe rules do not allow: the stack that the pointer
// leads to may move in between.
func ioctlPtr[T any](fd int, req uintptr, arg *T) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// openKVM opens the KVM device and checks that it speaks the API.
func openKVM(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, deviceError(path, err)
	}
	v, err := ioctl(fd, kvm.IIO(0), 0)
	if err != nil || v != apiVersion {
		unix.Close(fd)
		if err != nil {
			return -1, fmt.Errorf("%w: %s is no KVM device: %w", ErrNoKVM, path, err)
		}
		return -1, fmt.Errorf("%w: %s speaks KVM API version %d, it must be %d", ErrNoKVM, path, v, apiVersion)
	}
	return fd, nil
}

// deviceError says what a failure to open the device or to create a machine means, and what
// to do about it.
func deviceError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %s: %w; load the kvm_intel or kvm_amd module, and turn on virtualization in the firmware or, in a virtual machine, nesting on its host", ErrNoKVM, path, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %s: %w; join the group that owns the device (usually kvm), or pass the device into the container", ErrPermission, path, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s: %w; another hypervisor holds the processor's virtualization: stop it", ErrBusy, path, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrSetup, path, err)
}

// Capability is a KVM capability that a machine needs: KVM API, section 4.4.
type Capability struct {
	Name string
	id   kvm.Capability
}

// checkCapabilities returns ErrCapability with the names of those that are missing.
func checkCapabilities(fd int, need []Capability) error {
	var missing []string
	for _, c := range need {
		n, err := ioctl(fd, kvm.IIO(0x03), uintptr(c.id))
		if err != nil {
			return fmt.Errorf("%w: KVM_CHECK_EXTENSION %s: %w", ErrSetup, c.Name, err)
		}
		if n == 0 {
			missing = append(missing, c.Name)
		}
	}
	if missing != nil {
		return fmt.Errorf("%w: %v; a newer host kernel has them", ErrCapability, missing)
	}
	return nil
}

// CheckDevice reports what keeps machines from being built on the KVM device at path ("":
// /dev/kvm): nil, or one of New's errors.
func CheckDevice(path string) error {
	if path == "" {
		path = DefaultDevice
	}
	fd, err := openKVM(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := checkCapabilities(fd, Capabilities()); err != nil {
		return err
	}
	vm, err := ioctl(fd, kvm.IIO(0x01), 0)
	if err != nil {
		return deviceError(path, err)
	}
	return unix.Close(vm)
}
