package kvm

import (
	"fmt"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
)

// vcpuInit is struct kvm_vcpu_init.
type vcpuInit struct {
	target   uint32
	features [7]uint32
}

// Features of a vCPU, as bits of the first word: KVM API, 4.82 KVM_ARM_VCPU_INIT.
const (
	featurePowerOff = 1 << 0
	featurePSCI02   = 1 << 2
)

// setupVCPU makes a vCPU one of the host's kind. All but the first are off until the guest turns them on by PSCI.
func (a *armProcessor) setupVCPU(_ *instance, v *vcpu) error {
	init := a.target
	init.features[0] = featurePSCI02
	if v.id > 0 {
		init.features[0] |= featurePowerOff
	}
	if err := ioctlPtr(v.fd, kvm.IIOW(reqVCPUInit, unsafe.Sizeof(init)), &init); err != nil {
		return fmt.Errorf("%w: KVM_ARM_VCPU_INIT of vCPU %d, target %d: %w", vm.ErrSetup, v.id, init.target, err)
	}
	_ = v.set(regCLIDR, caches) // before 6.3, a vCPU has its host's and no other
	return nil
}

// caches is what CLIDR_EL1 says of the caches in front of the one that the device tree adds: the first level is one for
// data and one for instructions, the second is for both and the last before memory (LoC). It is what QEMU's processors
// have, too. What KVM makes up from 6.3 on has fewer, and Linux then does not believe the tree: cache_setup_of_node in
// its drivers/base/cacheinfo.c.
const caches = 1<<27 | 2<<24 | 1<<21 | 4<<3 | 3

// register is a register's number in KVM_GET_ONE_REG and KVM_SET_ONE_REG: KVM API, 4.68, "arm64".
type register uint64

// core is a register of struct kvm_regs, by its place there in 64-bit words.
func core(n uint64) register { return register(0x6030_0000_0010_0000 | n*2) }

// The words of struct kvm_regs behind x0 to x30: arch/arm64/include/uapi/asm/kvm.h and ptrace.h.
var (
	regPC     = core(32)
	regPSTATE = core(33)
	regCLIDR  = system(3, 1, 0, 0, 1)
)

// system is a system register, by the numbers that MRS names it by.
func system(op0, op1, crn, crm, op2 uint64) register {
	return register(0x6030_0000_0013_0000 | op0<<14 | op1<<11 | crn<<7 | crm<<3 | op2)
}

// oneReg is struct kvm_one_reg.
type oneReg struct {
	id    register
	value *uint64
}

func (v *vcpu) get(r register) (value uint64, err error) {
	one := &oneReg{r, &value}
	return value, ioctlPtr(v.fd, kvm.IIOW(reqGetOneReg, unsafe.Sizeof(*one)), one)
}

func (v *vcpu) set(r register, value uint64) error {
	one := &oneReg{r, &value}
	if err := ioctlPtr(v.fd, kvm.IIOW(reqSetOneReg, unsafe.Sizeof(*one)), one); err != nil {
		return fmt.Errorf("KVM_SET_ONE_REG 0x%x to 0x%x: %w", uint64(r), value, err)
	}
	return nil
}

// enter sets the registers of the vCPU that enters the kernel. The others are off.
func (a *armProcessor) enter(v *vcpu, e vm.Entry) error {
	state := arm64.EntryState(e)
	for i, x := range state.X {
		if err := v.set(core(uint64(i)), x); err != nil {
			return err
		}
	}
	if err := v.set(regPSTATE, state.PSTATE); err != nil {
		return err
	}
	return v.set(regPC, state.PC)
}

// named is a register and its name.
type named struct {
	name     string
	register register
}

// shown are the registers that are shown, behind the stack pointer.
var shown = func() []named {
	all := []named{{"pc", regPC}, {"pstate", regPSTATE}}
	for i := range uint64(31) {
		all = append(all, named{fmt.Sprintf("x%d", i), core(i)})
	}
	return append(all, []named{
		{"sp_el0", core(31)},
		{"sp_el1", core(34)},
		{"elr_el1", core(35)},
		{"spsr_el1", core(36)},
		{"esr_el1", system(3, 0, 5, 2, 0)},
		{"far_el1", system(3, 0, 6, 0, 0)},
		{"vbar_el1", system(3, 0, 12, 0, 0)},
		{"sctlr_el1", system(3, 0, 1, 0, 0)},
		{"ttbr0_el1", system(3, 0, 2, 0, 0)},
		{"ttbr1_el1", system(3, 0, 2, 0, 1)},
	}...)
}()

// stackOfLevel is the bit of PSTATE that is set where the processor uses the stack pointer of its exception level, and
// not SP_EL0: Arm Architecture Reference Manual, SPSR_EL1, M[0].
const stackOfLevel = 1 << 0

func (a *armProcessor) registers(v *vcpu) (vm.Registers, error) {
	all := vm.Registers{Values: []vm.Register{{Name: "sp"}}}
	values := map[string]uint64{}
	for _, r := range shown {
		value, err := v.get(r.register)
		if err != nil {
			return vm.Registers{}, fmt.Errorf("KVM_GET_ONE_REG %s, 0x%x: %w", r.name, uint64(r.register), err)
		}
		values[r.name] = value
		all.Values = append(all.Values, vm.Register{Name: r.name, Value: value})
	}
	all.PC, all.SP = values["pc"], values["sp_el0"]
	if values["pstate"]&stackOfLevel != 0 {
		all.SP = values["sp_el1"]
	}
	all.Values[0].Value = all.SP
	return all, nil
}
