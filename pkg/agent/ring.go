package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// openRing maps the ring that the kernel's command line names. /dev/mem is opened without O_SYNC,
// which would map it uncached.
func (a *agent) openRing() error {
	cmdline, err := os.ReadFile(a.path("/proc/cmdline"))
	if err != nil {
		return err
	}
	p, err := shm.ParseParams(string(cmdline))
	if err != nil {
		return err
	}
	fd, err := unix.Open(a.path("/dev/mem"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/mem: %w", err)
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, int64(p.Base), int(p.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping %v through /dev/mem: %w (is the ring System RAM, or the kernel locked down?)", p, err)
	}
	memory, err := guestmem.New(guestmem.Region{Base: guestmem.Addr(p.Base), Mem: mem})
	if err != nil {
		return err
	}
	region, err := memory.Window(guestmem.Addr(p.Base), p.Size)
	if err != nil {
		return err
	}
	if a.control, err = shm.NewControl(region); err != nil {
		return err
	}
	if a.writer, err = shm.NewWriter(region); err != nil {
		return err
	}
	a.writer.SetBell(a.kernel.ringBell)
	return nil
}
