// Package kvm runs machines in this process, on KVM.
package kvm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Backend is KVM. The zero value uses DefaultDevice.
type Backend struct {
	Device string // the KVM device; "": DefaultDevice
}

// Name implements vm.Backend.
func (Backend) Name() string { return "kvm" }

func (b Backend) device() string {
	if b.Device == "" {
		return DefaultDevice
	}
	return b.Device
}

// processor is what differs between the architectures.
type processor interface {
	// machineType is what KVM_CREATE_VM is told: KVM API, 4.2.
	machineType(kvmFD int) (uintptr, error)
	// checkVM reports what a machine would lack that capabilities do not tell.
	checkVM(vmFD int) error
	// setupVM makes the machine's interrupt controllers and devices, before its vCPUs.
	setupVM(m *instance) error
	// vcpuID is what KVM is told to call the machine's processor id.
	vcpuID(m *instance, id int) uintptr
	// setupVCPU makes a vCPU what it is before the machine starts.
	setupVCPU(m *instance, v *vcpu) error
	// finish does what needs all vCPUs.
	finish(m *instance) error
	// enter sets the state in which the first vCPU enters a kernel.
	enter(v *vcpu, e vm.Entry) error
	// exit handles an exit that only this architecture has; false where it knows none such.
	exit(m *instance, v *vcpu) bool
	// registers reads a vCPU's registers, on its thread.
	registers(v *vcpu) (vm.Registers, error)
}

// instance is a machine on KVM: its slots, and a thread for each vCPU.
type instance struct {
	vm.FirstSign // the first exit

	spec      vm.Spec
	stop      func(error)
	processor processor
	kvmFD     int
	vmFD      int
	regions   []guestmem.Region
	devices   []int // descriptors of devices that KVM made for it
	vcpus     []*vcpu
	running   sync.WaitGroup
	ended     chan struct{} // closed when every vCPU of a started machine has ended
	exits     [len(exitNames)]atomic.Uint64
	asking    chan struct{} // has a value while somebody asks for registers

	mu       sync.Mutex
	started  bool
	killed   chan struct{} // closed by Kill
	released bool          // the vCPUs' pages are gone
}

// New implements vm.Backend. Its errors wrap ErrNoKVM, ErrPermission, ErrBusy or ErrCapability in addition to
// vm.ErrUnavailable.
func (b Backend) New(s vm.Spec, stop func(error)) (vm.Instance, error) {
	p, err := newProcessor(s, stop)
	if err != nil {
		return nil, err
	}
	m := &instance{spec: s, stop: stop, processor: p, kvmFD: -1, vmFD: -1, ended: make(chan struct{}),
		killed: make(chan struct{}), asking: make(chan struct{}, 1)}
	if err := m.build(b.device()); err != nil {
		_ = m.release() // there is a better error
		return nil, err
	}
	return m, nil
}

func (m *instance) build(device string) error {
	var err error
	if m.kvmFD, err = openKVM(device); err != nil {
		return err
	}
	if err := checkCapabilities(m.kvmFD, Capabilities()); err != nil {
		return err
	}
	if m.vmFD, err = createVM(m.kvmFD, device, m.processor); err != nil {
		return err
	}
	if err := m.mapMemory(m.spec.Layout); err != nil {
		return err
	}
	if err := m.installMemory(); err != nil {
		return err
	}
	if err := m.processor.setupVM(m); err != nil {
		return err
	}
	for i := range m.spec.Topology.CPUs() {
		v, err := newVCPU(m, i)
		if err != nil {
			return err
		}
		m.vcpus = append(m.vcpus, v)
		if err := m.processor.setupVCPU(m, v); err != nil {
			return err
		}
	}
	return m.processor.finish(m)
}

// Regions implements vm.Instance.
func (m *instance) Regions() []guestmem.Region { return m.regions }

// Emulated implements vm.Instance. A KVM that emulates kernel mode has no word for that: KernelSpeed.
func (m *instance) Emulated() bool { return false }

// CounterKHz implements vm.Instance: KVM's guests ask their machine.
func (m *instance) CounterKHz() (uint32, error) { return 0, nil }

// Start implements vm.Instance.
func (m *instance) Start(e vm.Entry) error {
	if err := m.processor.enter(m.vcpus[0], e); err != nil {
		return fmt.Errorf("%w: registers of vCPU 0: %w", vm.ErrSetup, err)
	}
	m.mu.Lock()
	m.started = true
	m.mu.Unlock()
	m.running.Add(len(m.vcpus))
	for _, v := range m.vcpus {
		go func() {
			defer m.running.Done()
			v.run(m)
		}()
	}
	go func() {
		m.running.Wait()
		close(m.ended)
	}()
	return nil
}

// Kill implements vm.Instance.
func (m *instance) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.killed:
		return
	default:
		close(m.killed)
	}
	if m.released {
		return
	}
	for _, v := range m.vcpus {
		v.kick()
	}
}

// Ended implements vm.Instance.
func (m *instance) Ended() <-chan struct{} { return m.ended }

// Close implements vm.Instance.
func (m *instance) Close() error {
	m.Kill()
	m.mu.Lock()
	started := m.started
	m.mu.Unlock()
	if started {
		<-m.ended
	}
	m.mu.Lock()
	m.released = true
	m.mu.Unlock()
	return m.release()
}

// release gives back what build took, in any state.
func (m *instance) release() error {
	var errs []error
	for _, v := range m.vcpus {
		errs = append(errs, v.release())
	}
	// KVM first: it holds on to the memory of its slots.
	for _, fd := range append(m.devices, m.vmFD, m.kvmFD) {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	m.unmapMemory()
	return errors.Join(errs...)
}
