package kvm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// KVM request numbers that gokvm keeps to itself: KVM API, section 4, and linux/kvm.h.
const (
	reqGetSupportedCPUID = 0x05
	reqSetTSSAddr        = 0x47
	reqSetIdentityMap    = 0x48
	reqCreatePIT2        = 0x77
	reqGetRegs           = 0x81
	reqSetRegs           = 0x82
	reqGetSregs          = 0x83
	reqSetSregs          = 0x84
	reqSetMSRs           = 0x89
	reqSetCPUID2         = 0x90
	reqGetTSCKHz         = 0xa3
)

// Where KVM may put what an Intel processor without unrestricted guest mode needs, in the hole
// below 4 GiB: KVM API, 4.36 and 4.40.
const (
	identityMapAddr = 0xfffbc000
	tssAddr         = 0xfffbd000
)

const howToGetKVM = "load the kvm_intel or kvm_amd module, and turn on virtualization in the firmware or, " +
	"in a virtual machine, nesting on its host"

// Capabilities lists what a machine needs of KVM on this architecture.
func Capabilities() []Capability {
	return []Capability{
		{"KVM_CAP_USER_MEMORY", kvm.CapUserMemory},
		{"KVM_CAP_IRQCHIP", kvm.CapIRQChip},
		{"KVM_CAP_PIT2", kvm.CapPIT2},
		{"KVM_CAP_SET_TSS_ADDR", kvm.CapSetTSSAddr},
		{"KVM_CAP_SET_IDENTITY_MAP_ADDR", kvm.CapSetIdentityMapAddr},
		{"KVM_CAP_EXT_CPUID", kvm.CapEXTCPUID},
		{"KVM_CAP_IMMEDIATE_EXIT", kvm.CapImmediateExit},
	}
}

// x86Processor is what KVM has to be told of an x86_64 machine: its in-kernel interrupt controllers and
// timer are KVM's, the rest of its devices the board's.
type x86Processor struct {
	bus       *x86.Bus
	hostCPUID []x86.CPUIDEntry // what KVM supports
	deadline  bool             // and whether that includes the APIC timer's TSC deadline mode
}

func newProcessor(s vm.Spec, _ func(error)) (processor, error) {
	if _, ok := s.Board.(x86.Board); !ok {
		return nil, fmt.Errorf("%w: KVM of an x86_64 host runs x86_64 guests, this one is %s", vm.ErrArch, s.Board.Arch())
	}
	return &x86Processor{}, nil
}

// machineType: there is but one.
func (*x86Processor) machineType(int) (uintptr, error) { return 0, nil }

// checkVM: capabilities tell all.
func (*x86Processor) checkVM(int) error { return nil }

func (x *x86Processor) setupVM(m *instance) error {
	if _, err := ioctl(m.vmFD, kvm.IIO(reqSetTSSAddr), tssAddr); err != nil {
		return fmt.Errorf("%w: KVM_SET_TSS_ADDR 0x%x: %w", vm.ErrSetup, tssAddr, err)
	}
	addr := uint64(identityMapAddr)
	if err := ioctlPtr(m.vmFD, kvm.IIOW(reqSetIdentityMap, 8), &addr); err != nil {
		return fmt.Errorf("%w: KVM_SET_IDENTITY_MAP_ADDR 0x%x: %w", vm.ErrSetup, addr, err)
	}
	if _, err := ioctl(m.vmFD, kvm.IIO(0x60), 0); err != nil {
		return fmt.Errorf("%w: KVM_CREATE_IRQCHIP: %w", vm.ErrSetup, err)
	}
	// struct kvm_pit_config; flag 1 makes KVM answer port 0x61 too, which Linux calibrates by.
	pit := [16]uint32{1}
	if err := ioctlPtr(m.vmFD, kvm.IIOW(reqCreatePIT2, unsafe.Sizeof(pit)), &pit); err != nil {
		return fmt.Errorf("%w: KVM_CREATE_PIT2: %w", vm.ErrSetup, err)
	}
	x.bus = x86.NewBus(m.spec.Console, m.spec.Bell, m.setIRQ, m.stop)
	return x.readCPUID(m)
}

// vcpuID is the APIC ID: KVM API, 4.7 KVM_CREATE_VCPU.
func (*x86Processor) vcpuID(m *instance, id int) uintptr { return uintptr(m.spec.Topology.APICID(id)) }

func (*x86Processor) finish(*instance) error { return nil }

func (x *x86Processor) exit(_ *instance, v *vcpu) bool {
	switch v.state.ExitReason {
	case uint32(kvm.EXITIO):
		x.port(v)
	case uint32(kvm.EXITMMIO):
		// Reads are all ones, as on an empty bus.
		if _, data, write := v.mmio(); !write {
			for i := range data {
				data[i] = 0xff
			}
		}
	default:
		return false
	}
	return true
}

// port does an access to an I/O port.
func (x *x86Processor) port(v *vcpu) {
	data, out, size, port := v.ioData()
	if size == 0 {
		return
	}
	for ; len(data) >= size; data = data[size:] {
		if out {
			x.bus.Out(port, data[:size])
		} else {
			x.bus.In(port, data[:size])
		}
	}
}

// ioData returns the bytes of a port access: struct kvm_run's io.
func (v *vcpu) ioData() (data []byte, out bool, size int, port uint16) {
	direction, size64, port64, count, offset := v.state.IO()
	end := offset + size64*count
	if end < offset || end > uint64(len(v.page)) {
		return nil, direction == kvm.EXITIOOUT, int(size64), uint16(port64)
	}
	return v.page[offset:end], direction == kvm.EXITIOOUT, int(size64), uint16(port64)
}

func (x *x86Processor) registers(v *vcpu) (vm.Registers, error) {
	r, s := new(kvm.Regs), new(kvm.Sregs)
	if err := ioctlPtr(v.fd, kvm.IIOR(reqGetRegs, unsafe.Sizeof(*r)), r); err != nil {
		return vm.Registers{}, fmt.Errorf("KVM_GET_REGS: %w", err)
	}
	if err := ioctlPtr(v.fd, kvm.IIOR(reqGetSregs, unsafe.Sizeof(*s)), s); err != nil {
		return vm.Registers{}, fmt.Errorf("KVM_GET_SREGS: %w", err)
	}
	return vm.Registers{PC: r.RIP, SP: r.RSP, Values: []vm.Register{
		{Name: "rip", Value: r.RIP}, {Name: "rsp", Value: r.RSP}, {Name: "rflags", Value: r.RFLAGS},
		{Name: "rax", Value: r.RAX}, {Name: "rbx", Value: r.RBX}, {Name: "rcx", Value: r.RCX},
		{Name: "rdx", Value: r.RDX}, {Name: "rsi", Value: r.RSI}, {Name: "rdi", Value: r.RDI},
		{Name: "rbp", Value: r.RBP}, {Name: "r8", Value: r.R8}, {Name: "r9", Value: r.R9},
		{Name: "r10", Value: r.R10}, {Name: "r11", Value: r.R11}, {Name: "r12", Value: r.R12},
		{Name: "r13", Value: r.R13}, {Name: "r14", Value: r.R14}, {Name: "r15", Value: r.R15},
		{Name: "cs", Value: uint64(s.CS.Selector)}, {Name: "ss", Value: uint64(s.SS.Selector)},
		{Name: "fs_base", Value: s.FS.Base}, {Name: "gs_base", Value: s.GS.Base},
		{Name: "cr0", Value: s.CR0}, {Name: "cr2", Value: s.CR2}, {Name: "cr3", Value: s.CR3},
		{Name: "cr4", Value: s.CR4}, {Name: "efer", Value: s.EFER},
	}}, nil
}
