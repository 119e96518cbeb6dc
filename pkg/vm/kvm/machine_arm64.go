package kvm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
)

// KVM request numbers that gokvm keeps to itself: KVM API, section 4, and linux/kvm.h.
const (
	reqCheckExtension  = 0x03
	reqGetOneReg       = 0xab
	reqSetOneReg       = 0xac
	reqVCPUInit        = 0xae
	reqPreferredTarget = 0xaf
	reqCreateDevice    = 0xe0
	reqSetDeviceAttr   = 0xe1
)

const howToGetKVM = "the host's kernel needs KVM, and the firmware has to start it at EL2, which in " +
	"a virtual machine is nesting on its host"

// Capabilities lists what a machine needs of KVM on this architecture.
func Capabilities() []Capability {
	return []Capability{
		{"KVM_CAP_USER_MEMORY", kvm.CapUserMemory},
		{"KVM_CAP_ONE_REG", kvm.CapONEREG},
		{"KVM_CAP_DEVICE_CTRL", kvm.CapDeviceCtrl},
		{"KVM_CAP_ARM_PSCI_0_2", kvm.CapARMPSCI02},
		{"KVM_CAP_IMMEDIATE_EXIT", kvm.CapImmediateExit},
	}
}

// armProcessor is what KVM has to be told of an arm64 machine: its interrupt controller, timers and PSCI are
// KVM's, the rest of its devices the board's.
type armProcessor struct {
	spec   vm.Spec
	bus    *arm64.Bus
	gic    int // the interrupt controller's descriptor
	target vcpuInit
}

func newProcessor(s vm.Spec, _ func(error)) (processor, error) {
	if _, ok := s.Board.(arm64.Board); !ok {
		return nil, fmt.Errorf("%w: KVM of an arm64 host runs arm64 guests, this one is %s", vm.ErrArch, s.Board.Arch())
	}
	return &armProcessor{spec: s}, nil
}

// addressBits is as far as a board's memory ever reaches, and what KVM gives a machine whose type is 0.
const addressBits = 40

// machineType is how many bits a guest-physical address has, up to the host's limit; some hosts have fewer than
// the 40 that type 0 stands for. KVM API, 4.2 KVM_CREATE_VM.
func (a *armProcessor) machineType(kvmFD int) (uintptr, error) {
	limit, err := ioctl(kvmFD, kvm.IIO(reqCheckExtension), uintptr(kvm.CapARMVMIPASize))
	if err != nil {
		return 0, fmt.Errorf("%w: KVM_CHECK_EXTENSION KVM_CAP_ARM_VM_IPA_SIZE: %w", vm.ErrSetup, err)
	}
	bits, kind := addressBits, 0
	if limit > 0 { // else a KVM that knows but one type
		bits = min(limit, addressBits)
		kind = bits
	}
	r := a.spec.Layout.Reserved
	if end := uint64(r.Base) + r.Size; end > 1<<bits {
		return 0, fmt.Errorf("%w: the guest's memory ends at 0x%x, this host's KVM gives addresses %d bits: "+
			"at most %d bytes of memory", vm.ErrConfig, end, bits, uint64(1)<<bits-arm64.RAM)
	}
	return uintptr(kind), nil
}

// createGIC makes the interrupt controller and returns its descriptor, or, with the flag createTest, says whether it
// could.
func createGIC(vmFD int, flags uint32) (int, error) {
	device := struct{ kind, fd, flags uint32 }{kind: deviceGICv3, flags: flags} // struct kvm_create_device
	if err := ioctlPtr(vmFD, kvm.IIOWR(reqCreateDevice, unsafe.Sizeof(device)), &device); err != nil {
		return -1, unavailable(ErrCapability, "KVM_CREATE_DEVICE of a GICv3: %w; the host's interrupt controller has to be "+
			"one too, or newer", err)
	}
	return int(device.fd), nil
}

func (a *armProcessor) checkVM(vmFD int) error {
	_, err := createGIC(vmFD, createTest)
	return err
}

// setupVM makes the interrupt controller, whose addresses KVM wants before there is a vCPU.
func (a *armProcessor) setupVM(m *instance) (err error) {
	if a.gic, err = createGIC(m.vmFD, 0); err != nil {
		return err
	}
	m.devices = append(m.devices, a.gic)
	for _, s := range []struct {
		what        string
		group, attr uint32
		value       uint64
	}{
		{"distributor's address", gicAddress, 2, arm64.Distributor},
		{"redistributors' address", gicAddress, 3, arm64.Redistributors}, // one range for those of all vCPUs
		{"number of interrupts", gicInterrupts, 0, arm64.Interrupts},     // a u32, which is the same here
	} {
		if err := a.setGIC(s.group, s.attr, &s.value); err != nil {
			return fmt.Errorf("%w: the GIC's %s, 0x%x: %w", vm.ErrSetup, s.what, s.value, err)
		}
	}
	if err := ioctlPtr(m.vmFD, kvm.IIOR(reqPreferredTarget, unsafe.Sizeof(a.target)), &a.target); err != nil {
		return fmt.Errorf("%w: KVM_ARM_PREFERRED_TARGET: %w", vm.ErrSetup, err)
	}
	a.bus = arm64.NewBus(m.spec.Console, func(interrupt, level uint32) error {
		return m.setIRQ(irqSPI|(firstSPI+interrupt), level)
	})
	return nil
}

// vcpuID is the number: KVM makes affinities of it as the board's tree has them, 16 to a cluster.
func (*armProcessor) vcpuID(_ *instance, id int) uintptr { return uintptr(id) }

// finish is what KVM wants of the interrupt controller when all vCPUs are there: KVM, devices/arm-vgic-v3.rst,
// KVM_DEV_ARM_VGIC_CTRL_INIT.
func (a *armProcessor) finish(*instance) error {
	if err := a.setGIC(gicControl, 0, nil); err != nil {
		return fmt.Errorf("%w: initializing the GIC: %w", vm.ErrSetup, err)
	}
	return nil
}

// The interrupt controller as a KVM device: linux/kvm.h, and KVM, devices/arm-vgic-v3.rst.
const (
	deviceGICv3   = 7
	createTest    = 1 << 0 // KVM API, 4.79 KVM_CREATE_DEVICE
	gicAddress    = 0
	gicInterrupts = 3
	gicControl    = 4
)

// How KVM_IRQ_LINE counts shared interrupts: KVM API, 4.25.
const (
	irqSPI   = 1 << 24
	firstSPI = 32
)

// deviceAttr is struct kvm_device_attr.
type deviceAttr struct {
	flags, group uint32
	attr         uint64
	value        *uint64
}

func (a *armProcessor) setGIC(group, attr uint32, value *uint64) error {
	d := &deviceAttr{group: group, attr: uint64(attr), value: value}
	return ioctlPtr(a.gic, kvm.IIOW(reqSetDeviceAttr, unsafe.Sizeof(*d)), d)
}

func (a *armProcessor) exit(m *instance, v *vcpu) bool {
	if v.state.ExitReason != uint32(kvm.EXITMMIO) {
		return false
	}
	at, data, write := v.mmio()
	do, what := a.bus.Read, "read"
	if write {
		do, what = a.bus.Write, "write"
	}
	if !do(at, data) {
		m.stop(fmt.Errorf("%w: %s of %d bytes at %v, where nothing is, on vCPU %d; %s",
			vm.ErrRun, what, len(data), at, v.id, v.describe(m)))
	}
	return true
}
