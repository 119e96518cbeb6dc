package call

import (
	"errors"
	"fmt"
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// The kernel command line's parameters that name the area, behind the ring's.
const (
	paramBase = "KTSTR_CALL_BASE="
	paramSize = "KTSTR_CALL_SIZE="
)

// ErrParams means that a kernel command line names no call area.
var ErrParams = errors.New("kernel command line names no call area")

// Params says where the area lies in the guest.
type Params struct {
	Base uint64 // guest-physical address
	Size uint64 // bytes
}

// String returns the parameters as they appear on the kernel command line.
func (p Params) String() string {
	return fmt.Sprintf("%s0x%x %s0x%x", paramBase, p.Base, paramSize, p.Size)
}

// ParseParams finds the parameters on a kernel command line, by shm.ParseParams's rules. It fails with ErrParams.
func ParseParams(cmdline string) (p Params, err error) {
	if p.Base, err = shm.HexParam(cmdline, paramBase); err == nil {
		p.Size, err = shm.HexParam(cmdline, paramSize)
	}
	if err != nil {
		return Params{}, fmt.Errorf("%w: %w", ErrParams, err)
	}
	return p, nil
}

// Map maps the area in a guest, as shm.MapRing maps the ring. It fails with ErrParams if the guest has none.
func Map(cmdline, devMem string) (*guestmem.Window, error) {
	text, err := os.ReadFile(cmdline)
	if err != nil {
		return nil, err
	}
	p, err := ParseParams(string(text))
	if err != nil {
		return nil, err
	}
	area, _, err := shm.MapRegion(devMem, shm.Params(p))
	return area, err
}
