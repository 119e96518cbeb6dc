// Package introspect reads from outside what a guest's Linux kernel has on its run queues: from the guest's memory, by
// the kernel's symbols and types, through its page tables. The guest takes no part in it, so one that hangs can be
// asked too.
//
// Everything in a guest's memory may be a lie, and may change while it is read: every read is checked by guestmem, how
// many there are is bounded by what the host knows, and a value is fetched once. What was read of a running guest is
// no snapshot.
package introspect

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

// CPU is what the kernel says of one of its CPUs.
type CPU struct {
	Index     int
	Online    bool          // the scheduler uses it
	NrRunning uint32        // runnable tasks, the running one included
	Clock     time.Duration // the run queue's clock, which stands still while the CPU sleeps or hangs
	Idle      bool          // the idle task runs
	PID       int32         // of the running task
	Comm      string        // its name: up to 16 bytes, any that the guest likes
	Policy    Policy        // its scheduling policy
	SCX       *SCX          // nil for a kernel without sched_ext
}

// Policy is a scheduling policy: linux, include/uapi/linux/sched.h.
type Policy uint32

var policies = map[Policy]string{
	0: "normal", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline", 7: "ext",
}

// String returns the policy's name in lower case, or its number.
func (p Policy) String() string {
	if name, ok := policies[p]; ok {
		return name
	}
	return strconv.FormatUint(uint64(p), 10)
}

// SCX is what sched_ext says of a CPU.
type SCX struct {
	Flags     uint32 // linux, kernel/sched/sched.h, enum scx_rq_flags
	NrRunning uint32 // runnable tasks of the scheduler that is loaded
}

// Look appends what the kernel says of its first count CPUs to cpus. It fails with ErrNotUp early in a boot, with
// ErrTypes for a kernel whose types are not known, and with ErrUnmapped or guestmem.ErrOutside for what can't be read;
// then it returns the CPUs before that one.
func (v *View) Look(cpus []CPU, count int) ([]CPU, error) {
	if v.layout == (layout{}) {
		return cpus, fmt.Errorf("%w are not known", ErrTypes)
	}
	for i := range count {
		c, err := v.cpu(i)
		if err != nil {
			return cpus, fmt.Errorf("CPU %d: %w", i, err)
		}
		cpus = append(cpus, c)
	}
	return cpus, nil
}

func (v *View) cpu(index int) (c CPU, err error) {
	f := fields{v: v}
	offset := f.uint64(v.offsets + 8*uint64(index))
	rq := v.runqueues + offset
	if number := f.number(rq, v.number); f.err == nil && uint64(index) != number {
		return c, fmt.Errorf("%w: the run queue at 0x%x says that it is of CPU %d", ErrNotUp, rq, number)
	}
	c = CPU{
		Index:     index,
		Online:    f.number(rq, v.online) != 0,
		NrRunning: uint32(f.number(rq, v.nrRunning)),
		Clock:     time.Duration(f.number(rq, v.clock)),
	}
	curr, idle := f.number(rq, v.curr), f.number(rq, v.idle)
	if v.scxFlags.size > 0 && v.scxNrRunning.size > 0 {
		c.SCX = &SCX{uint32(f.number(rq, v.scxFlags)), uint32(f.number(rq, v.scxNrRunning))}
	}
	if f.err == nil && curr == 0 {
		return c, ErrNotUp
	}
	c.Idle = curr == idle
	c.PID, c.Policy = int32(f.number(curr, v.pid)), Policy(f.number(curr, v.policy))
	var comm [commSize]byte
	f.read(comm[:], curr+uint64(v.comm.offset))
	c.Comm = cString(comm[:])
	return c, f.err
}

// fields reads a structure's members, until one can't be read.
type fields struct {
	v   *View
	err error
}

func (f *fields) read(dst []byte, at uint64) {
	if f.err == nil {
		f.err = f.v.read(dst, at)
	}
}

func (f *fields) uint64(at uint64) uint64 {
	var b [8]byte
	f.read(b[:], at)
	return binary.LittleEndian.Uint64(b[:])
}

// number returns a member of 4 or 8 bytes of the structure at an address.
func (f *fields) number(at uint64, m member) uint64 {
	var b [8]byte
	f.read(b[:m.size], at+uint64(m.offset))
	return binary.LittleEndian.Uint64(b[:])
}
