package agent

import (
	"errors"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

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

// openCalls maps the call area and takes its guest's side, where the host has made one.
func (a *agent) openCalls() error {
	area, err := call.Map(a.path("/proc/cmdline"), a.path("/dev/mem"))
	if errors.Is(err, call.ErrParams) {
		return nil
	}
	if err == nil {
		a.calls, err = call.Attach(area, a.kernel.ringBell)
	}
	return err
}
