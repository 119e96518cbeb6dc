package kvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// question asks the vCPUs for their registers, which KVM tells a vCPU's own thread alone while it runs. There is room
// for all answers: a vCPU that answers when nobody listens any more does not wait.
type question struct{ answers chan vm.Registers }

// Registers implements vm.RegisterReader: each vCPU leaves the guest for a moment, one that is halted or off too.
func (m *instance) Registers(ctx context.Context) ([]vm.Registers, error) {
	select { // a vCPU has room for one question
	case m.asking <- struct{}{}:
		defer func() { <-m.asking }()
	case <-m.killed:
		return nil, vm.ErrNotRunning
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	q := &question{make(chan vm.Registers, len(m.vcpus))}
	if !m.ask(q) {
		return nil, vm.ErrNotRunning
	}
	all := make([]vm.Registers, len(m.vcpus))
	for i := range all {
		all[i] = vm.Registers{CPU: i, Err: errNoAnswer}
	}
	for range all {
		select {
		case r := <-q.answers:
			all[r.CPU] = r
		case <-m.killed:
			return unanswered(all, vm.ErrNotRunning), nil
		case <-ctx.Done():
			return unanswered(all, fmt.Errorf("it did not leave the guest: %w", context.Cause(ctx))), nil
		}
	}
	return all, nil
}

// errNoAnswer stands for a vCPU that has not answered.
var errNoAnswer = errors.New("no answer")

// unanswered says why for those that have not answered.
func unanswered(all []vm.Registers, why error) []vm.Registers {
	for i := range all {
		if errors.Is(all[i].Err, errNoAnswer) {
			all[i].Err = why
		}
	}
	return all
}

// ask makes every vCPU answer a question. It reports whether there are any.
func (m *instance) ask(q *question) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released {
		return false
	}
	for _, v := range m.vcpus {
		v.asked.Store(q)
		v.kick()
	}
	return true
}

// answer answers if somebody has asked. It must be called by the vCPU's thread.
func (v *vcpu) answer(m *instance) {
	q := v.asked.Swap(nil)
	if q == nil {
		return
	}
	r, err := m.processor.registers(v)
	if err == nil {
		r.State, err = v.activity()
	}
	if err != nil {
		r = vm.Registers{Err: err}
	}
	r.CPU = v.id
	q.answers <- r
}

// reqGetMPState is KVM_GET_MP_STATE: KVM API, 4.38.
const reqGetMPState = 0x98

// activities are the states that it tells: linux/kvm.h, KVM_MP_STATE_*.
var activities = map[uint32]vm.State{
	0:  vm.Running, // on arm64 one that is halted, too
	1:  vm.Off,     // waits for INIT
	2:  vm.Off,     // waits for SIPI
	3:  vm.Halted,
	4:  vm.Off, // got SIPI, and has yet to begin
	5:  vm.Off,
	10: vm.Halted, // suspended
}

func (v *vcpu) activity() (vm.State, error) {
	var state uint32
	if err := ioctlPtr(v.fd, kvm.IIOR(reqGetMPState, unsafe.Sizeof(state)), &state); err != nil {
		return "", fmt.Errorf("KVM_GET_MP_STATE: %w", err)
	}
	return activities[state], nil
}

// describe describes the vCPU for an error message, as an emulator's log would.
func (v *vcpu) describe(m *instance) string {
	r, err := m.processor.registers(v)
	if err != nil {
		return fmt.Sprintf("registers: %v", err)
	}
	var s strings.Builder
	for _, value := range r.Values {
		fmt.Fprintf(&s, " %s=0x%x", value.Name, value.Value)
	}
	return strings.TrimPrefix(s.String(), " ")
}
