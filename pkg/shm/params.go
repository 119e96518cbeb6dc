package shm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The kernel command line's parameters that name the ring's region: ktstr shm_ring.rs,
// parse_shm_params_from_str.
const (
	paramBase = "KTSTR_SHM_BASE="
	paramSize = "KTSTR_SHM_SIZE="
)

// ErrParams means that a kernel command line does not name a ring.
var ErrParams = errors.New("kernel command line names no ring")

// Params says where the ring's region lies in the guest.
type Params struct {
	Base uint64 // guest-physical address
	Size uint64 // bytes
}

// String returns the parameters as they appear on the kernel command line.
func (p Params) String() string {
	return fmt.Sprintf("%s0x%x %s0x%x", paramBase, p.Base, paramSize, p.Size)
}

// ParseParams finds the parameters on a kernel command line. As in the reference, the first of each counts, and the
// numbers are hex, with or without 0x. It fails with ErrParams.
func ParseParams(cmdline string) (Params, error) {
	base, err := HexParam(cmdline, paramBase)
	if err != nil {
		return Params{}, fmt.Errorf("%w: %w", ErrParams, err)
	}
	size, err := HexParam(cmdline, paramSize)
	if err != nil {
		return Params{}, fmt.Errorf("%w: %w", ErrParams, err)
	}
	return Params{base, size}, nil
}

// HexParam returns the value of the first parameter with a name, which ends in =, as a hex number.
func HexParam(cmdline, name string) (uint64, error) {
	for word := range strings.FieldsSeq(cmdline) {
		text, found := strings.CutPrefix(word, name)
		if !found {
			continue
		}
		digits := strings.TrimPrefix(strings.TrimPrefix(text, "0x"), "0X")
		v, err := strconv.ParseUint(digits, 16, 64)
		if err != nil {
			return 0, fmt.Errorf("%s%q is no hex number of 64 bits", name, text)
		}
		return v, nil
	}
	return 0, fmt.Errorf("%s is missing", strings.TrimSuffix(name, "="))
}
