package vm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"
)

// Bits of the control registers: SDM volume 3, section 2.5 and 2.2.1.
const (
	cr0PE, cr0MP, cr0ET, cr0NE, cr0WP, cr0AM, cr0PG = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 18, 1 << 31
	cr4PAE, cr4OSFXSR, cr4OSXMMEXCPT                = 1 << 5, 1 << 9, 1 << 10
	eferLME, eferLMA                                = 1 << 8, 1 << 10
)

// MSRs that a PC's firmware would have set: SDM volume 4, table 2-2, and volume 3, section
// 12.11.2.1 (MTRRs on, write-back by default: without it Linux maps the reserved memory uncached).
const (
	msrMiscEnable  = uint32(kvm.MSRIA32MISCENABLE)
	fastStrings    = 1
	msrMTRRDefType = uint32(kvm.MSRMTRRdefType)
	mtrrWriteBack  = 0xc06 // E, FE, type 6
)

func (x *x86) setupVCPU(m *Machine, v *vcpu) error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"CPUID", func() error { return x.setCPUID(m, v) }},
		{"MSRs", func() error { return setMSRs(v) }},
		{"registers", func() error { return x.setRegisters(v) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%w: %s of vCPU %d: %w", ErrSetup, step.name, v.id, err)
		}
	}
	return nil
}

// cpuidTable is struct kvm_cpuid2 with room for more entries than any host has.
type cpuidTable struct {
	count, _ uint32
	entries  [256]kvm.CPUIDEntry2
}

// cpuidHead is the size of cpuidTable without its entries, as its requests count it.
const cpuidHead = 8

// readCPUID asks once what every vCPU's CPUID is made from: KVM API, 4.46 KVM_GET_SUPPORTED_CPUID.
func (x *x86) readCPUID(m *Machine) error {
	t := &cpuidTable{count: 256}
	if err := ioctlPtr(m.kvmFD, kvm.IIOWR(reqGetSupportedCPUID, cpuidHead), t); err != nil {
		return fmt.Errorf("%w: KVM_GET_SUPPORTED_CPUID: %w", ErrSetup, err)
	}
	deadline, err := ioctl(m.kvmFD, kvm.IIO(0x03), uintptr(kvm.CapTSCDeadlineTimer)) // KVM_CHECK_EXTENSION
	if err != nil {
		return fmt.Errorf("%w: KVM_CHECK_EXTENSION KVM_CAP_TSC_DEADLINE_TIMER: %w", ErrSetup, err)
	}
	// A host has some 50 entries, so there is room for all of ours.
	x.hostCPUID, x.deadline = t.entries[:min(int(t.count), 200)], deadline > 0
	return nil
}

// setCPUID shows the guest the host's processor as KVM supports it, with this machine's topology:
// KVM API, 4.60 KVM_SET_CPUID2.
func (x *x86) setCPUID(m *Machine, v *vcpu) error {
	khz, err := ioctl(v.fd, kvm.IIO(reqGetTSCKHz), 0) // KVM API, 4.56
	if err != nil {
		khz = 0 // a host whose TSC is not stable: the guest measures
	}
	t := &cpuidTable{}
	t.count = uint32(copy(t.entries[:], cpuidFor(x.hostCPUID, v.id, m.cfg.CPUs, x.deadline, uint32(khz))))
	return ioctlPtr(v.fd, kvm.IIOW(reqSetCPUID2, cpuidHead), t)
}

func setMSRs(v *vcpu) error {
	msrs := struct { // struct kvm_msrs
		count, _ uint32
		entries  [2]kvm.MSREntry
	}{count: 2, entries: [2]kvm.MSREntry{
		{Index: msrMiscEnable, Data: fastStrings},
		{Index: msrMTRRDefType, Data: mtrrWriteBack},
	}}
	return ioctlPtr(v.fd, kvm.IIOW(reqSetMSRs, 8), &msrs)
}

// setRegisters sets the state that the 64-bit boot protocol asks for: Linux boot protocol,
// section "64-bit boot protocol". The other vCPUs wait in the interrupt controller for INIT
// and SIPI, and are left as KVM made them.
func (x *x86) setRegisters(v *vcpu) error {
	if v.id != 0 {
		return nil
	}
	s := new(kvm.Sregs)
	if err := ioctlPtr(v.fd, kvm.IIOR(reqGetSregs, unsafe.Sizeof(*s)), s); err != nil {
		return err
	}
	s.CS = kvm.Segment{Limit: 0xffffffff, Selector: bootCS, Typ: 0xb, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: bootDS, Typ: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.GDT.Base, s.GDT.Limit = gdtAddr, gdtSize-1
	s.IDT.Base, s.IDT.Limit = 0, 0
	s.CR0 = cr0PE | cr0MP | cr0ET | cr0NE | cr0WP | cr0AM | cr0PG
	s.CR3 = pml4Addr
	s.CR4 = cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT
	s.EFER = eferLME | eferLMA
	if err := ioctlPtr(v.fd, kvm.IIOW(reqSetSregs, unsafe.Sizeof(*s)), s); err != nil {
		return err
	}
	r := &kvm.Regs{RIP: uint64(x.entry), RSI: bootParamsAddr, RSP: stackTop, RFLAGS: 2}
	return ioctlPtr(v.fd, kvm.IIOW(reqSetRegs, unsafe.Sizeof(*r)), r)
}
