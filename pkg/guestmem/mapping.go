package guestmem

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is x86-64's and arm64's first size above 4 KiB pages.
const hugePage = 2 << 20

// MapAnonymous maps size bytes of private memory, a multiple of the page size, without touching them. Unmap unmaps it.
// The mapping, like MapShared's, starts at a multiple of the huge page size: KVM, and the kernel for a process, can
// only map a huge page if both addresses have the same offset in one.
func MapAnonymous(size uint64) ([]byte, error) {
	return mapAligned(-1, size, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}

// MapShared maps a new memfd of size bytes and returns both. The mapping outlives the file. Nobody can change the
// file's size: if a mapped file is truncated, the process that reads the mapping is killed.
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
	return mapAligned(fd, size, unix.MAP_SHARED)
}

// mapAligned maps a file, or none, in place of a part of a larger mapping, whose rest goes back.
func mapAligned(fd int, size uint64, flags int) ([]byte, error) {
	const reserve = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	room, err := unix.MmapPtr(-1, 0, nil, uintptr(size)+hugePage, unix.PROT_NONE, reserve)
	if err != nil {
		return nil, err
	}
	before := -uintptr(room) % hugePage
	at := unsafe.Add(room, before)
	_, err = unix.MmapPtr(fd, 0, at, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_FIXED)
	if err != nil {
		_ = unix.MunmapPtr(room, uintptr(size)+hugePage)
		return nil, err
	}
	// These fail for no part of a mapping.
	if before > 0 {
		_ = unix.MunmapPtr(room, before)
	}
	_ = unix.MunmapPtr(unsafe.Add(at, uintptr(size)), hugePage-before)
	mem := unsafe.Slice((*byte)(at), size)
	leaveOutOfDumps(mem)
	return mem, nil
}

// leaveOutOfDumps keeps what a guest has in memory out of our core dumps: it is not ours to give away, and large.
// It fails for no mapping of memory, and a dump that has more is no reason to have no guest.
func leaveOutOfDumps(mem []byte) { _ = unix.Madvise(mem, unix.MADV_DONTDUMP) }

// Unmap unmaps what MapAnonymous or MapShared mapped.
func Unmap(mem []byte) {
	_ = unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem))) // fails only for what is no mapping
}

const (
	page = 4 << 10
	// worthPopulating is from how many bytes on a system call costs less than the page faults.
	worthPopulating = 256 << 10
)

// populate makes pages for mem before they are touched, huge ones as far as they lie in mem. It is an offer: a kernel
// that does not know it (MADV_POPULATE_WRITE is of 5.14, MADV_COLLAPSE of 6.1) refuses, as it does for memory that is
// no mapping, and nothing changes.
func populate(mem []byte) {
	start := untilNext(hugePage, mem)
	end := start + (len(mem)-start)/hugePage*hugePage
	if start < end && collapse(mem[start:end]) {
		populateSmall(mem[:start])
		mem = mem[end:]
	}
	populateSmall(mem)
}

// collapse makes huge pages of mem, and reports whether it could. Most systems are set up to give shared memory
// none by themselves; this needs no setting. The kernel waits for all of its processors each time (lru_add_drain_all),
// so once for a long run is better than for each piece.
func collapse(mem []byte) bool {
	for at := 0; at < len(mem); at += hugePage { // there must be a page to begin with
		if unix.Madvise(mem[at:at+page], unix.MADV_POPULATE_WRITE) != nil {
			return false
		}
	}
	return unix.Madvise(mem, unix.MADV_COLLAPSE) == nil
}

// populateSmall makes pages as the kernel gives them by itself.
func populateSmall(mem []byte) {
	if skip := untilNext(page, mem); len(mem) >= worthPopulating {
		_ = unix.Madvise(mem[skip:skip+(len(mem)-skip)/page*page], unix.MADV_POPULATE_WRITE)
	}
}

// untilNext returns how many bytes of mem lie before the next multiple of a page's size, at most all.
func untilNext(size int, mem []byte) int {
	return min(int(-uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%uintptr(size)), len(mem))
}
