package shm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// MapRing maps the ring in a guest: the one that the kernel's command line names in the file cmdline, /proc/cmdline
// there, through the file devMem, /dev/mem there. It returns the ring's region, and the same as plain bytes, which stay
// mapped as long as the process lives.
//
// devMem is opened without O_SYNC, which would map the ring uncached where it can be cached.
func MapRing(cmdline, devMem string) (*guestmem.Window, []byte, error) {
	text, err := os.ReadFile(cmdline)
	if err != nil {
		return nil, nil, err
	}
	p, err := ParseParams(string(text))
	if err != nil {
		return nil, nil, err
	}
	return MapRegion(devMem, p)
}

// MapRegion maps a range of the guest's physical addresses in a guest, as MapRing does.
func MapRegion(devMem string, p Params) (*guestmem.Window, []byte, error) {
	fd, err := unix.Open(devMem, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("/dev/mem: %w", err)
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, int64(p.Base), int(p.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mapping %v through /dev/mem: %w (is it System RAM, or the kernel locked down?)",
			p, err)
	}
	memory, err := guestmem.New(guestmem.Region{Base: guestmem.Addr(p.Base), Mem: mem})
	if err != nil {
		return nil, nil, err
	}
	region, err := memory.Window(guestmem.Addr(p.Base), p.Size)
	return region, mem, err
}
