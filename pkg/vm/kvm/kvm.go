package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// DefaultDevice is the KVM device.
const DefaultDevice = "/dev/kvm"

// Why KVM can't be used, for errors.Is. They come with vm.ErrUnavailable; the cause is wrapped too.
var (
	ErrNoKVM      = errors.New("no KVM on this host")
	ErrPermission = errors.New("no permission to use KVM")
	ErrBusy       = errors.New("KVM is busy")
	ErrCapability = errors.New("KVM lacks a capability")
	ErrIncoherent = errors.New("memory that a guest maps uncached is not coherent with this host's caches")
)

// unavailable is an error that says what keeps KVM from being used, and what to do about it.
func unavailable(why error, format string, args ...any) error {
	return vm.Unavailable(fmt.Errorf("%w: %w", why, fmt.Errorf(format, args...)))
}

// apiVersion is the only one there is: KVM API, 4.1 KVM_GET_API_VERSION.
const apiVersion = 12

// KVM request numbers that gokvm keeps to itself: KVM API, section 4, and linux/kvm.h.
const (
	reqCreateVM      = 0x01
	reqSetUserMemory = 0x46
	reqIRQLine       = 0x61
	reqRun           = 0x80
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

// ioctlPtr calls a KVM request whose argument is a structure.
func ioctlPtr[T any](fd int, req uintptr, arg *T) error {
	_, err := ioctlCount(fd, req, arg)
	return err
}

// ioctlCount is ioctlPtr for a request that says how much of it was done. gokvm turns pointers into
// numbers one call too early, which Go's unsafe rules do not allow: the stack that the pointer
// leads to may move in between.
func ioctlCount[T any](fd int, req uintptr, arg *T) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
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
			return -1, unavailable(ErrNoKVM, "%s is no KVM device: %w", path, err)
		}
		return -1, unavailable(ErrNoKVM, "%s speaks KVM API version %d, it must be %d", path, v, apiVersion)
	}
	return fd, nil
}

// deviceError says what a failure to open the device or to create a machine means, and what
// to do about it.
func deviceError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO),
		errors.Is(err, unix.ENOTDIR):
		return unavailable(ErrNoKVM, "%s: %w; %s", path, err, howToGetKVM)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return unavailable(ErrPermission,
			"%s: %w; join the group that owns the device (usually kvm), or pass the device into the container", path, err)
	case errors.Is(err, unix.EBUSY):
		return unavailable(ErrBusy, "%s: %w; another hypervisor holds the processor's virtualization: stop it", path, err)
	}
	return fmt.Errorf("%w: %s: %w", vm.ErrSetup, path, err)
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
			return fmt.Errorf("%w: KVM_CHECK_EXTENSION %s: %w", vm.ErrSetup, c.Name, err)
		}
		if n == 0 {
			missing = append(missing, c.Name)
		}
	}
	if missing != nil {
		return unavailable(ErrCapability, "%v; a newer host kernel has them", missing)
	}
	return nil
}

// Check reports why machines of a board can't be built with KVM: one of New's errors. It returns nil if they can.
func (b Backend) Check(board vm.Board) error {
	p, err := newProcessor(vm.Spec{Board: board}, nil)
	if err != nil {
		return err
	}
	fd, err := openKVM(b.device())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := checkCapabilities(fd, Capabilities()); err != nil {
		return err
	}
	machine, err := createVM(fd, b.device(), p)
	if err != nil {
		return err
	}
	return errors.Join(p.checkVM(machine), unix.Close(machine))
}

// createVM makes a machine that is empty yet.
func createVM(kvmFD int, device string, p processor) (int, error) {
	kind, err := p.machineType(kvmFD)
	if err != nil {
		return -1, err
	}
	fd, err := ioctl(kvmFD, kvm.IIO(reqCreateVM), kind)
	if err != nil {
		return -1, deviceError(device, err)
	}
	return fd, nil
}

// setIRQ sets the level of an interrupt line: KVM API, 4.25 KVM_IRQ_LINE, which says how lines are counted.
func (m *instance) setIRQ(line, level uint32) error {
	l := [2]uint32{line, level} // struct kvm_irq_level
	return ioctlPtr(m.vmFD, kvm.IIOW(reqIRQLine, unsafe.Sizeof(l)), &l)
}
