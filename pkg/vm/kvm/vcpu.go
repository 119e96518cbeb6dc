package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// vcpu is one virtual processor and the thread that runs it.
type vcpu struct {
	id    int // its number in the machine
	fd    int
	page  []byte       // struct kvm_run and what follows it: KVM API, section 5
	tid   atomic.Int32 // the thread that runs it, 0 while none does
	state *kvm.RunData // page's beginning
	asked atomic.Pointer[question]
}

func newVCPU(m *instance, id int) (*vcpu, error) {
	fd, err := ioctl(m.vmFD, kvm.IIO(0x41), m.processor.vcpuID(m, id)) // KVM_CREATE_VCPU
	if err != nil {
		return nil, fmt.Errorf("%w: vCPU %d: %w", vm.ErrSetup, id, err)
	}
	v := &vcpu{id: id, fd: fd}
	size, err := ioctl(m.kvmFD, kvm.IIO(0x04), 0) // KVM_GET_VCPU_MMAP_SIZE
	if err == nil && size < int(unsafe.Sizeof(kvm.RunData{})) {
		err = fmt.Errorf("kvm_run is %d bytes, %d are needed", size, unsafe.Sizeof(kvm.RunData{}))
	}
	if err == nil {
		v.page, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: vCPU %d: %w", vm.ErrSetup, id, err), v.release())
	}
	v.state = (*kvm.RunData)(unsafe.Pointer(&v.page[0]))
	return v, nil
}

func (v *vcpu) release() error {
	var err error
	if v.page != nil {
		err = unix.Munmap(v.page)
	}
	return errors.Join(err, unix.Close(v.fd))
}

// kick makes the vCPU leave KVM_RUN, or not enter it, until it takes the kick back. Why it is to leave has to be there
// before: Kill closes killed, Registers asks. immediate_exit is set first and stays set: a thread that is about to
// enter finds it, and one that is inside is woken by the signal, so there is no moment in which the kick is lost. KVM
// API, section 5, immediate_exit.
//
// The signal is SIGURG: the Go runtime handles it on every thread and takes one too many as
// nothing, and KVM_RUN is not restarted after it.
func (v *vcpu) kick() {
	atomic.OrUint32(v.immediateExit(), immediateExit)
	if tid := v.tid.Load(); tid != 0 {
		_ = unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG) // the thread may have ended
	}
}

// unkick takes a kick back. Why it came must be looked at after that: a kick that comes later stays.
func (v *vcpu) unkick() { atomic.AndUint32(v.immediateExit(), ^uint32(immediateExit)) }

// immediateExit is the flag in the word that immediateExit returns: byte 1 of kvm_run's first word, whose byte 0 is
// ours too and unused, and whose other bytes are padding.
const immediateExit = 1 << 8

func (v *vcpu) immediateExit() *uint32 { return (*uint32)(unsafe.Pointer(&v.page[0])) }

// run runs the guest until the machine stops.
func (v *vcpu) run(m *instance) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.tid.Store(int32(unix.Gettid()))
	defer v.tid.Store(0)
	unpin, err := v.pin(m.spec.Pin)
	if err != nil {
		m.stop(fmt.Errorf("%w: vCPU %d: %w", vm.ErrRun, v.id, err))
		return
	}
	defer unpin()
	for {
		_, err := kvm.Ioctl(uintptr(v.fd), kvm.IIO(reqRun), 0)
		if errors.Is(err, unix.EINTR) {
			v.unkick()
			v.answer(m)
		}
		select {
		case <-m.killed:
			return
		default:
		}
		switch {
		case err == nil:
			v.exit(m)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			m.countExit(exitIntr)
		default:
			m.stop(fmt.Errorf("%w: KVM_RUN on vCPU %d: %w; %s", vm.ErrRun, v.id, err, v.describe(m)))
		}
	}
}

// pin pins the vCPU's thread, which is the caller's, to its part of the host's CPUs. The thread goes on as another
// goroutine's when the vCPU has ended, so unpin lets it run where it could before.
func (v *vcpu) pin(cpus []int) (unpin func(), err error) {
	if len(cpus) == 0 {
		return func() {}, nil
	}
	before, err := affinity.Allowed()
	if err != nil {
		return nil, err
	}
	return func() { _ = affinity.Pin(0, before...) }, affinity.Pin(0, cpus[v.id%len(cpus)])
}

// Reasons of exits that gokvm does not name: linux/kvm.h.
const (
	exitIRQWindow   = 7
	exitSystemEvent = 24
)

// exit handles one exit: KVM API, section 5, exit_reason.
func (v *vcpu) exit(m *instance) {
	reason := v.state.ExitReason
	m.countExit(reason)
	m.FirstSign.Note()
	switch reason {
	case uint32(kvm.EXITINTR), exitIRQWindow:
	case uint32(kvm.EXITSHUTDOWN):
		m.stop(fmt.Errorf("%w on vCPU %d", vm.ErrTripleFault, v.id))
	case exitSystemEvent:
		m.stop(v.systemEvent(m))
	case uint32(kvm.EXITFAILENTRY):
		m.stop(fmt.Errorf("%w: entry failed on vCPU %d, hardware reason 0x%x; %s", vm.ErrRun, v.id, v.state.Data[0],
			v.describe(m)))
	case uint32(kvm.EXITINTERNALERROR):
		m.stop(fmt.Errorf("%w: internal error %d on vCPU %d; %s", vm.ErrRun, uint32(v.state.Data[0]), v.id,
			v.describe(m)))
	default:
		if !m.processor.exit(m, v) {
			m.stop(fmt.Errorf("%w: unknown exit reason %d on vCPU %d; %s", vm.ErrRun, reason, v.id, v.describe(m)))
		}
	}
}

// Types of system events: linux/kvm.h, KVM_SYSTEM_EVENT_*.
const (
	eventShutdown = 1
	eventReset    = 2
	eventCrash    = 3
)

// systemEvent is the reason that a guest gave for its machine's end: struct kvm_run's system_event, which
// begins with a u32, the type.
func (v *vcpu) systemEvent(m *instance) error {
	switch event := uint32(v.state.Data[0]); event {
	case eventShutdown:
		return vm.ErrPowerOff
	case eventReset:
		return vm.ErrReset
	case eventCrash:
		return fmt.Errorf("%w: the guest said that it crashed, on vCPU %d; %s", vm.ErrRun, v.id, v.describe(m))
	default:
		return fmt.Errorf("%w: unknown system event %d on vCPU %d; %s", vm.ErrRun, event, v.id, v.describe(m))
	}
}

// mmioData is where struct kvm_run's mmio has its data: a u64 address, 8 bytes of data, u32 length, u8 is_write.
const mmioData = unsafe.Offsetof(kvm.RunData{}.Data) + 8

// mmio returns an access to guest-physical memory that nothing backs. What is written to data is what a read
// gets when the vCPU goes on.
func (v *vcpu) mmio() (at guestmem.Addr, data []byte, write bool) {
	size := min(uint32(v.state.Data[2]), 8)
	return guestmem.Addr(v.state.Data[0]), v.page[mmioData:][:size], byte(v.state.Data[2]>>32) != 0
}
