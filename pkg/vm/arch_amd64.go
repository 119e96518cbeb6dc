package vm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"

	"github.com/ktstr/ktstr-vmm/pkg/e820"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Where KVM may put what an Intel processor without unrestricted guest mode needs, in the hole
// below 4 GiB: KVM API, 4.36 and 4.40.
const (
	identityMapAddr = 0xfffbc000
	tssAddr         = 0xfffbd000
)

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

// NewPlan lays out a machine's memory; Config says what 0 means. It fails with e820's errors.
func NewPlan(memory, reserved uint64) (Plan, error) {
	l, err := newLayout(memory, reserved)
	if err != nil {
		return Plan{}, err
	}
	return planOf(l), nil
}

func newLayout(memory, reserved uint64) (*e820.Layout, error) {
	if memory == 0 {
		memory = DefaultMemory
	}
	if reserved == 0 {
		reserved = DefaultReserved
	}
	return e820.New(memory, reserved)
}

func planOf(l *e820.Layout) Plan {
	var p Plan
	for _, r := range []e820.Range{l.Low, l.High} {
		if r.Size > 0 {
			p.RAM = append(p.RAM, Span{guestmem.Addr(r.Start), r.Size})
		}
	}
	p.Reserved = Span{guestmem.Addr(l.Ring.Start), l.Ring.Size}
	return p
}

// x86 is a PC as Linux knows it: 64-bit entry, in-kernel interrupt controllers and timer, a
// serial port and a keyboard controller that can reset.
type x86 struct {
	layout *e820.Layout
	entry  guestmem.Addr
	com1   serial

	hostCPUID []kvm.CPUIDEntry2 // what KVM supports
	deadline  bool              // and whether that includes the APIC timer's TSC deadline mode
}

func newArch(cfg Config) (Plan, arch, error) {
	l, err := newLayout(cfg.Memory, cfg.Reserved)
	if err != nil {
		return Plan{}, nil, err
	}
	return planOf(l), &x86{layout: l}, nil
}

func (x *x86) setupVM(m *Machine) error {
	if _, err := ioctl(m.vmFD, kvm.IIO(reqSetTSSAddr), tssAddr); err != nil {
		return fmt.Errorf("%w: KVM_SET_TSS_ADDR 0x%x: %w", ErrSetup, tssAddr, err)
	}
	addr := uint64(identityMapAddr)
	if err := ioctlPtr(m.vmFD, kvm.IIOW(reqSetIdentityMap, 8), &addr); err != nil {
		return fmt.Errorf("%w: KVM_SET_IDENTITY_MAP_ADDR 0x%x: %w", ErrSetup, addr, err)
	}
	if _, err := ioctl(m.vmFD, kvm.IIO(0x60), 0); err != nil {
		return fmt.Errorf("%w: KVM_CREATE_IRQCHIP: %w", ErrSetup, err)
	}
	// struct kvm_pit_config; flag 1 makes KVM answer port 0x61 too, which Linux calibrates by.
	pit := [16]uint32{1}
	if err := ioctlPtr(m.vmFD, kvm.IIOW(reqCreatePIT2, unsafe.Sizeof(pit)), &pit); err != nil {
		return fmt.Errorf("%w: KVM_CREATE_PIT2: %w", ErrSetup, err)
	}
	if err := x.readCPUID(m); err != nil {
		return err
	}
	x.com1 = serial{out: m.cfg.Console, irq: func(level uint32) error {
		line := [2]uint32{com1IRQ, level} // struct kvm_irq_level
		return ioctlPtr(m.vmFD, kvm.IIOW(reqIRQLine, unsafe.Sizeof(line)), &line)
	}}
	return nil
}

func (x *x86) load(m *Machine, ram *guestmem.Memory) error {
	k, err := m.cfg.Kernel.Load(ram)
	if err != nil {
		return err
	}
	x.entry = k.Entry
	initrd, err := loadInitrd(ram, x.layout, k, m.cfg.Initrd)
	if err != nil {
		return err
	}
	if err := loadACPI(ram, m.cfg.CPUs); err != nil {
		return err
	}
	return loadBootData(ram, x.layout, k, initrd, m.cfg.Cmdline)
}

// Ports: the PC's I/O map.
const (
	com1Base     = 0x3f8
	com1Size     = 8
	com1IRQ      = 4
	i8042Command = 0x64
	i8042Reset   = 0xfe
)

func (x *x86) exit(m *Machine, v *vcpu) bool {
	if v.state.ExitReason != uint32(kvm.EXITIO) {
		return false
	}
	data, out, size, port := v.ioData()
	if size == 0 {
		return true
	}
	for ; len(data) >= size; data = data[size:] {
		switch {
		case port >= com1Base && port < com1Base+com1Size:
			if out {
				x.com1.write(uint8(port-com1Base), data[0])
			} else {
				data[0] = x.com1.read(uint8(port - com1Base))
			}
		case port == i8042Command && out:
			if data[0] == i8042Reset {
				m.Stop(fmt.Errorf("%w: 0x%x to port 0x%x on vCPU %d", ErrReset, i8042Reset, i8042Command, v.id))
			}
		case port == i8042Command:
			data[0] = 0 // ready for a command, nothing to read
		case !out:
			for i := range data[:size] {
				data[i] = 0xff // as on an empty bus
			}
		}
	}
	return true
}

// registers describes the vCPU as an emulator's log would.
func (x *x86) registers(v *vcpu) string {
	r, s := new(kvm.Regs), new(kvm.Sregs)
	if err := ioctlPtr(v.fd, kvm.IIOR(reqGetRegs, unsafe.Sizeof(*r)), r); err != nil {
		return fmt.Sprintf("registers: %v", err)
	}
	if err := ioctlPtr(v.fd, kvm.IIOR(reqGetSregs, unsafe.Sizeof(*s)), s); err != nil {
		return fmt.Sprintf("registers: %v", err)
	}
	return fmt.Sprintf("rip=0x%x rsp=0x%x rflags=0x%x rax=0x%x rbx=0x%x rcx=0x%x rdx=0x%x rsi=0x%x rdi=0x%x rbp=0x%x "+
		"r8=0x%x r9=0x%x r10=0x%x r11=0x%x r12=0x%x r13=0x%x r14=0x%x r15=0x%x "+
		"cr0=0x%x cr2=0x%x cr3=0x%x cr4=0x%x efer=0x%x cs=0x%x ss=0x%x",
		r.RIP, r.RSP, r.RFLAGS, r.RAX, r.RBX, r.RCX, r.RDX, r.RSI, r.RDI, r.RBP,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15,
		s.CR0, s.CR2, s.CR3, s.CR4, s.EFER, s.CS.Selector, s.SS.Selector)
}
