package guestmem

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is x86-64's and arm64's first size above 4 KiB pages.
const hugePage = 2 << 20

// MapAnonymous maps size bytes of private memory, to be given back by Unmap; nothing is touched. It begins
// at a multiple of a huge page: KVM gives a guest a huge page only where the host's address and the guest's
// are as far into one.
func MapAnonymous(size uint64) ([]byte, error) {
	whole := uintptr(size) + hugePage
	p, err := unix.MmapPtr(-1, 0, nil, whole, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	before := -uintptr(p) % hugePage
	mem := unsafe.Slice((*byte)(unsafe.Add(p, before)), size)
	// What lies around it goes back; these fail for no part of a mapping.
	if before > 0 {
		_ = unix.MunmapPtr(p, before)
	}
	_ = unix.MunmapPtr(unsafe.Add(p, before+uintptr(size)), hugePage-before)
	leaveOutOfDumps(mem)
	return mem, nil
}

// MapShared maps a new memfd of size bytes and returns both; the mapping outlives the file. Nobody can
// change the file's size: a mapping whose file is cut short kills the process that reads it.
func MapShared(name string, size uint64) ([]byte, *os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	mem, err := mapSealed(fd, size)
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	return mem, file, nil
}

func mapSealed(fd int, size uint64) ([]byte, error) {
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
		unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, err
	}
	p, err := unix.MmapPtr(fd, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	mem := unsafe.Slice((*byte)(p), size)
	leaveOutOfDumps(mem)
	return mem, nil
}

// leaveOutOfDumps keeps what a guest has in memory out of our core dumps: it is not ours to give away, and large.
// It fails for no mapping of memory, and a dump that has more is no reason to have no guest.
func leaveOutOfDumps(mem []byte) { _ = unix.Madvise(mem, unix.MADV_DONTDUMP) }

// Unmap gives back what MapAnonymous or MapShared mapped.
func Unmap(mem []byte) {
	_ = unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem))) // fails only for what is no mapping
}

// worthPopulating is from how many bytes on a system call costs less than the page faults.
const worthPopulating = 256 << 10

// populate makes pages of all of mem that lies in whole ones. It is an offer: a kernel that does not know it
// (before 5.14) refuses, as it does for memory that is no mapping, and nothing changes.
func populate(mem []byte) {
	const page = 4 << 10
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(mem))) % page)
	if len(mem) >= worthPopulating {
		_ = unix.Madvise(mem[skip:skip+(len(mem)-skip)/page*page], unix.MADV_POPULATE_WRITE)
	}
}
