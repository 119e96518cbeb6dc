package kvm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func (x *x86Processor) setupVCPU(m *instance, v *vcpu) error {
	if err := x.setCPUID(m, v); err != nil {
		return fmt.Errorf("%w: CPUID of vCPU %d: %w", vm.ErrSetup, v.id, err)
	}
	if err := setMSRs(v.fd, x86.MSRs()); err != nil {
		return fmt.Errorf("vCPU %d: %w", v.id, err)
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
func (x *x86Processor) readCPUID(m *instance) error {
	t := &cpuidTable{count: 256}
	if err := ioctlPtr(m.kvmFD, kvm.IIOWR(reqGetSupportedCPUID, cpuidHead), t); err != nil {
		return fmt.Errorf("%w: KVM_GET_SUPPORTED_CPUID: %w", vm.ErrSetup, err)
	}
	deadline, err := ioctl(m.kvmFD, kvm.IIO(0x03), uintptr(kvm.CapTSCDeadlineTimer)) // KVM_CHECK_EXTENSION
	if err != nil {
		return fmt.Errorf("%w: KVM_CHECK_EXTENSION KVM_CAP_TSC_DEADLINE_TIMER: %w", vm.ErrSetup, err)
	}
	// A host has some 50 entries, so there is room for all of ours.
	for _, e := range t.entries[:min(int(t.count), 200)] {
		x.hostCPUID = append(x.hostCPUID, x86.CPUIDEntry{
			Function: e.Function, Index: e.Index, Flags: e.Flags, Eax: e.Eax, Ebx: e.Ebx, Ecx: e.Ecx, Edx: e.Edx,
		})
	}
	x.deadline = deadline > 0
	return x86.CheckCPUID(x.hostCPUID, m.spec.Topology)
}

// setCPUID shows the guest the host's processor as KVM supports it, with this machine's topology:
// KVM API, 4.60 KVM_SET_CPUID2.
func (x *x86Processor) setCPUID(m *instance, v *vcpu) error {
	khz, err := ioctl(v.fd, kvm.IIO(reqGetTSCKHz), 0) // KVM API, 4.56
	if err != nil {
		khz = 0 // a host whose TSC is not stable: the guest measures
	}
	t := &cpuidTable{}
	for i, e := range x86.CPUID(x.hostCPUID, v.id, m.spec.Topology, x.deadline, uint32(khz)) {
		t.entries[i] = kvm.CPUIDEntry2{
			Function: e.Function, Index: e.Index, Flags: e.Flags, Eax: e.Eax, Ebx: e.Ebx, Ecx: e.Ecx, Edx: e.Edx,
		}
		t.count++
	}
	return ioctlPtr(v.fd, kvm.IIOW(reqSetCPUID2, cpuidHead), t)
}

// setMSRs sets them all. KVM stops at the first that it does not take, and says in passing how many came
// before: KVM API, 4.19 KVM_SET_MSRS.
func setMSRs(fd int, values []x86.MSR) error {
	msrs := struct { // struct kvm_msrs
		count, _ uint32
		entries  [8]kvm.MSREntry
	}{}
	for i, r := range values {
		msrs.entries[i] = kvm.MSREntry{Index: r.Index, Data: r.Value}
		msrs.count++
	}
	n, err := ioctlCount(fd, kvm.IIOW(reqSetMSRs, 8), &msrs)
	if err == nil && n < len(values) {
		err = fmt.Errorf("KVM refused MSR 0x%x the value 0x%x, after %d of %d", values[n].Index,
			values[n].Value, n, len(values))
	}
	if err != nil {
		return fmt.Errorf("%w: KVM_SET_MSRS: %w", vm.ErrSetup, err)
	}
	return nil
}

// enter sets the registers of the vCPU that enters the kernel. The others wait in KVM's interrupt
// controller for INIT and SIPI, and are left as KVM made them.
func (x *x86Processor) enter(v *vcpu, e vm.Entry) error {
	state := x86.EntryState(e)
	s := new(kvm.Sregs)
	if err := ioctlPtr(v.fd, kvm.IIOR(reqGetSregs, unsafe.Sizeof(*s)), s); err != nil {
		return err
	}
	// Types and flags of segment descriptors: SDM volume 3, section 3.4.5.
	s.CS = kvm.Segment{Limit: 0xffffffff, Selector: state.CS, Typ: 0xb, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: state.DS, Typ: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.GDT.Base, s.GDT.Limit = state.GDTBase, state.GDTLimit
	s.IDT.Base, s.IDT.Limit = 0, 0
	s.CR0, s.CR3, s.CR4, s.EFER = state.CR0, state.CR3, state.CR4, state.EFER
	if err := ioctlPtr(v.fd, kvm.IIOW(reqSetSregs, unsafe.Sizeof(*s)), s); err != nil {
		return err
	}
	r := &kvm.Regs{RIP: state.RIP, RSI: state.RSI, RSP: state.RSP, RFLAGS: state.RFLAGS}
	return ioctlPtr(v.fd, kvm.IIOW(reqSetRegs, unsafe.Sizeof(*r)), r)
}
