package vm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// arch is what differs between the architectures.
type arch interface {
	// setupVM makes the machine's interrupt controllers and devices, before its vCPUs.
	setupVM(m *Machine) error
	// load puts the kernel and what it boots with into RAM.
	load(m *Machine, ram *guestmem.Memory) error
	// setupVCPU sets a vCPU's registers.
	setupVCPU(m *Machine, v *vcpu) error
	// exit handles an exit that only this architecture has; false where it knows none such.
	exit(m *Machine, v *vcpu) bool
	// registers describes a vCPU for an error message.
	registers(v *vcpu) string
}

// Machine is one virtual machine. Its methods may be called from many goroutines.
type Machine struct {
	cfg     Config
	plan    Plan
	arch    arch
	kvmFD   int
	vmFD    int
	mem     *memory
	guest   *guestmem.Memory
	vcpus   []*vcpu
	running sync.WaitGroup
	exits   [len(exitNames)]atomic.Uint64
	first   atomic.Int64 // the first exit, in Unix nanoseconds

	mu       sync.Mutex
	started  bool
	closed   bool
	released bool          // the vCPUs' pages are gone
	reasons  []error       // why it stopped, the first one first
	stopped  chan struct{} // closed with the first reason
	done     chan struct{} // closed when every vCPU has ended
}

// New builds a machine; nothing runs yet. It fails with ErrConfig, ErrArch, ErrNoKVM,
// ErrPermission, ErrBusy, ErrCapability, ErrKernel, ErrCmdline or ErrSetup, the sizes' errors
// are e820's, and leaves nothing behind.
func New(cfg Config) (*Machine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	plan, a, err := newArch(cfg)
	if err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, plan: plan, arch: a, kvmFD: -1, vmFD: -1, stopped: make(chan struct{}), done: make(chan struct{})}
	if err := m.build(); err != nil {
		m.release()
		return nil, err
	}
	return m, nil
}

func (m *Machine) build() error {
	var err error
	if m.kvmFD, err = openKVM(m.cfg.Device); err != nil {
		return err
	}
	if err := checkCapabilities(m.kvmFD, Capabilities()); err != nil {
		return err
	}
	if m.vmFD, err = ioctl(m.kvmFD, kvm.IIO(0x01), 0); err != nil { // KVM_CREATE_VM
		return deviceError(m.cfg.Device, err)
	}
	if m.mem, err = mapMemory(m.plan); err != nil {
		return err
	}
	if m.guest, err = m.mem.regions(len(m.plan.RAM) + 1); err != nil {
		return err
	}
	ram, err := m.mem.regions(len(m.plan.RAM))
	if err != nil {
		return err
	}
	if err := m.mem.install(m.vmFD); err != nil {
		return err
	}
	if err := m.arch.setupVM(m); err != nil {
		return err
	}
	if err := m.arch.load(m, ram); err != nil {
		return err
	}
	for i := range m.cfg.CPUs {
		v, err := newVCPU(m, i)
		if err != nil {
			return err
		}
		m.vcpus = append(m.vcpus, v)
		if err := m.arch.setupVCPU(m, v); err != nil {
			return err
		}
	}
	return nil
}

// Memory is all of the guest's RAM, the reserved part included. It is gone after Close.
func (m *Machine) Memory() *guestmem.Memory { return m.guest }

// Start lets the vCPUs run. It fails with ErrConfig where the machine was started or closed
// before.
func (m *Machine) Start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started || m.closed {
		return fmt.Errorf("%w: Start of a machine that was started or closed before", ErrConfig)
	}
	m.started = true
	m.running.Add(len(m.vcpus))
	for _, v := range m.vcpus {
		go func() {
			defer m.running.Done()
			v.run(m)
		}()
	}
	go func() {
		m.running.Wait()
		close(m.done)
	}()
	return nil
}

// Stop ends the machine for a reason and returns at once; Wait waits for the vCPUs. The first
// reason counts, the later ones are only noted. It reaches a guest whatever it does: spinning,
// halted, or not listening.
func (m *Machine) Stop(reason error) {
	if reason == nil {
		reason = errors.New("stopped")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reasons = append(m.reasons, reason)
	if len(m.reasons) > 1 {
		return
	}
	close(m.stopped)
	if m.released {
		return
	}
	for _, v := range m.vcpus {
		v.kick()
	}
}

// Done is closed when every vCPU of a started machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Wait waits until every vCPU has ended and returns the first reason: Stop's, or ErrReset,
// ErrTripleFault or ErrRun. It waits for ever for a machine that was never started.
func (m *Machine) Wait() error {
	<-m.done
	return m.Reasons()[0]
}

// Reasons returns why the machine stopped, the first reason first; none while it runs.
func (m *Machine) Reasons() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]error(nil), m.reasons...)
}

// FirstExit is when the guest first left KVM, or the zero time.
func (m *Machine) FirstExit() time.Time {
	ns := m.first.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Close stops the machine if it runs, waits for it, and gives back what it holds. Its memory
// must not be used any more.
func (m *Machine) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	started := m.started
	m.mu.Unlock()
	if started {
		m.Stop(errors.New("closed"))
		<-m.done
	}
	m.mu.Lock()
	m.released = true
	m.mu.Unlock()
	return m.release()
}

// release gives back what build took, in any state.
func (m *Machine) release() error {
	var errs []error
	for _, v := range m.vcpus {
		errs = append(errs, v.release())
	}
	// KVM first: it holds on to the memory of its slots.
	for _, fd := range []int{m.vmFD, m.kvmFD} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if m.mem != nil {
		m.mem.unmap()
	}
	return errors.Join(errs...)
}
