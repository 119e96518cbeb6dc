package shm

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseType returns the type that String shows so, in letters of either case, or that a number names.
func ParseType(name string) (Type, error) {
	for _, t := range Types() {
		if strings.EqualFold(t.String(), name) {
			return t, nil
		}
	}
	n, err := strconv.ParseUint(name, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no type of messages: it is four letters, such as %v, or a number, such as 0x%08x", name,
			Stimulus, uint32(Stimulus))
	}
	return Type(n), nil
}
