package agent

import "github.com/ktstr/ktstr-vmm/pkg/shm"

// openRing maps the ring and takes its guest's side.
func (a *agent) openRing() error {
	region, _, err := shm.MapRing(a.path("/proc/cmdline"), a.path("/dev/mem"))
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
