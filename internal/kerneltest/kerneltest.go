// Package kerneltest makes up kernels for tests of what reads them from a guest's memory: an image with a symbol table
// and types of its own, page tables, and run queues.
package kerneltest

import (
	"encoding/binary"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Order is how the parts of a kernel's symbol table lie.
type Order int

// The orders of Linux's versions.
const (
	Linux61  Order = iota // the addresses first
	Linux62               // the same, and a table of sequences before the tokens
	Linux612              // the addresses last
)

// Paging is how a kernel's page tables translate.
type Paging struct {
	Page   uint // a page has 2^Page bytes
	Levels int
	Bits   uint // of an address
}

// Task is what runs on a CPU.
type Task struct {
	PID    int32
	Policy uint32
	Comm   string
}

// CPU is a CPU's run queue.
type CPU struct {
	Task      // the idle task if its PID is 0
	Online    bool
	NrRunning uint32
	Clock     uint64 // nanoseconds
	SCXFlags  uint32
	SCXTasks  uint32
}

// Kernel describes a kernel.
type Kernel struct {
	Arch   string
	Paging Paging // zero: pages of 4 KiB, addresses of 48 bits
	Order  Order
	Moved  uint64 // bytes that the image is in memory behind its place
	Slid   uint64 // bytes that it is mapped behind the address that it is linked for
	CPUs   []CPU

	NoData  bool // the symbol table names functions only
	NoTypes bool // the kernel has no BTF
	NoSCX   bool // nor sched_ext
}

// Size is how much memory a kernel has, from Base on.
const Size = 8 << 20

// Where things lie in an image, from its start on.
const (
	TypesAt = 0x40000
	RootAt  = 0x100000 // the page tables' root

	offBanner  = 0x1000
	offPhys    = 0x2000 // phys_base, kimage_voffset
	offOffsets = 0x3000 // __per_cpu_offset
	offPerCPU  = 0x4000 // the per-CPU variables as they are linked, on arm64
	offSymbols = 0x10000
	offTables  = 0x110000 // each 64 KiB
	offRQ      = 0x300000 // each 4 KiB
	offTasks   = 0x380000

	percpuRQ = 0x800 // runqueues among the per-CPU variables
	stride   = 0x1000

	banner = "Linux version 6.12.0-test (made up) #1 SMP\n"
)

// The offsets in the structures that the types describe.
const (
	rqNrRunning  = 0x4
	rqCurr       = 0x10 // in an anonymous union
	rqIdle       = 0x18
	rqClock      = 0x40
	rqCPU        = 0x48
	rqOnline     = 0x4c
	rqSCX        = 0x80
	scxFlags     = 0x8
	scxNrRunning = 0xc
	rqSize       = 0x100

	taskPolicy = 0x20
	taskPID    = 0x28
	taskComm   = 0x40
	taskSize   = 0x100
)

var le = binary.LittleEndian

// arch is where a kernel is at home.
type arch struct {
	base   uint64 // in memory
	link   uint64 // of its image, as its symbol table has it
	image  uint64 // where it is mapped, if it is not slid
	direct uint64 // where all memory is mapped
	root   string
	phys   string
}

func (k Kernel) arch() arch {
	if k.Arch == "x86_64" {
		a := arch{16 << 20, 0xffffffff81000000, 0xffffffff81000000, 0xffff888000000000, "init_top_pgt", "phys_base"}
		if k.Paging.Bits == 57 {
			a.direct = 0xff11000000000000
		}
		return a
	}
	top := ^uint64(0) << k.Paging.Bits
	return arch{1<<30 + 2<<20, 0, top + 1<<(k.Paging.Bits-1) + 1<<27, top, "swapper_pg_dir", "kimage_voffset"}
}

// Base returns where a kernel's memory begins.
func (k Kernel) Base() guestmem.Addr { return guestmem.Addr(k.arch().base) }

// Address returns where the kernel has a byte of its image while it runs.
func (k Kernel) Address(offset uint64) uint64 { return k.withDefaults().arch().image + k.Slid + offset }

// text returns where the image begins in memory.
func (k Kernel) text() uint64 { return k.arch().base + k.Moved }

func (k Kernel) withDefaults() Kernel {
	if k.Paging == (Paging{}) {
		k.Paging = Paging{12, 4, 48}
	}
	return k
}

// Region returns a kernel's memory, as it is while it runs.
func (k Kernel) Region(t testing.TB) guestmem.Region {
	t.Helper()
	k = k.withDefaults()
	m := memory{make([]byte, Size), k.arch().base}
	text := k.text()
	m.string(text+offBanner, banner)
	k.header(m)
	if table := k.kallsyms(); len(table) > TypesAt-offSymbols {
		t.Fatalf("%d bytes of symbols", len(table))
	} else {
		copy(m.at(text+offSymbols), table)
	}
	if !k.NoTypes {
		copy(m.at(text+TypesAt), k.Types(t))
	}
	k.pageTables(t, m)
	k.queues(m)
	return guestmem.Region{Base: guestmem.Addr(m.base), Mem: m.bytes}
}

// Memory returns a guest's memory that holds nothing but the kernel's.
func (k Kernel) Memory(t testing.TB) *guestmem.Memory {
	t.Helper()
	mem, err := guestmem.New(k.Region(t))
	if err != nil {
		t.Fatal(err)
	}
	return mem
}

// memory is a range of guest memory.
type memory struct {
	bytes []byte
	base  uint64
}

func (m memory) at(pa uint64) []byte           { return m.bytes[pa-m.base:] }
func (m memory) uint32(pa uint64, v uint32)    { le.PutUint32(m.at(pa), v) }
func (m memory) uint64(pa uint64, v uint64)    { le.PutUint64(m.at(pa), v) }
func (m memory) string(pa uint64, text string) { copy(m.at(pa), text) }

// header writes what an arm64 kernel says of its pages, and where each kernel says that it runs.
func (k Kernel) header(m memory) {
	a, text := k.arch(), k.text()
	if k.Arch == "x86_64" {
		m.uint64(text+offPhys, k.Moved-k.Slid)
		return
	}
	flags := map[uint]uint64{12: 1, 14: 2, 16: 3}
	m.uint64(text+24, flags[k.Paging.Page]<<1)
	m.string(text+56, "ARM\x64")
	m.uint64(text+offPhys, a.image+k.Slid-text)
}

// queues writes the run queues and their tasks: CPU i's at stride after stride.
func (k Kernel) queues(m memory) {
	a, text := k.arch(), k.text()
	linked := uint64(percpuRQ) // x86_64 counts them from 0
	if k.Arch != "x86_64" {
		linked = a.image + k.Slid + offPerCPU + percpuRQ
	}
	for i, c := range k.CPUs {
		rq := text + offRQ + uint64(i)*stride
		curr, idle := text+offTasks+uint64(2*i)*taskSize, text+offTasks+uint64(2*i+1)*taskSize
		if c.PID == 0 {
			curr = idle
		}
		m.uint64(text+offOffsets+uint64(i)*8, a.virtual(rq)-linked)
		m.uint32(rq+rqCPU, uint32(i))
		m.uint32(rq+rqNrRunning, c.NrRunning)
		m.uint64(rq+rqClock, c.Clock)
		m.uint64(rq+rqCurr, a.virtual(curr))
		m.uint64(rq+rqIdle, a.virtual(idle))
		m.uint32(rq+rqSCX+scxFlags, c.SCXFlags)
		m.uint32(rq+rqSCX+scxNrRunning, c.SCXTasks)
		if c.Online {
			m.uint32(rq+rqOnline, 1)
		}
		m.uint32(curr+taskPID, uint32(c.PID))
		m.uint32(curr+taskPolicy, c.Policy)
		m.string(curr+taskComm, c.Comm)
	}
}

// virtual returns where all memory is mapped has an address of it.
func (a arch) virtual(pa uint64) uint64 {
	if a.root == "init_top_pgt" {
		return a.direct + pa
	}
	return a.direct + pa - 1<<30 // as arm64 does, from the start of RAM on
}

// symbol is a name with its type's letter, and an address.
type symbol struct {
	name    string
	address uint64
}

// symbols returns the kernel's own, with some hundreds of others among them, by address.
func (k Kernel) symbols() []symbol {
	a := k.arch()
	percpu := symbol{"Vrunqueues", percpuRQ}
	if k.Arch != "x86_64" {
		percpu.address = a.link + offPerCPU + percpuRQ
	}
	list := []symbol{{"T_text", a.link}}
	if !k.NoData && k.Arch == "x86_64" {
		list = append([]symbol{percpu}, list...)
	}
	for i := range uint64(600) {
		list = append(list, symbol{"tfunction_" + string([]byte{'a' + byte(i/26), 'a' + byte(i%26)}), a.link + i})
	}
	if k.NoData {
		return list
	}
	list = append(list, symbol{"Dlinux_banner", a.link + offBanner}, symbol{"D" + a.phys, a.link + offPhys},
		symbol{"D__per_cpu_offset", a.link + offOffsets})
	if k.Arch != "x86_64" {
		list = append(list, percpu)
	}
	return append(list, symbol{"D" + a.root, a.link + RootAt}, symbol{"B_end", a.link + Size})
}
