package config

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Size is a number of bytes: digits, hex ones behind 0x, and K, M or G for powers of 1024.
type Size uint64

var sizeUnits = []struct {
	letter string
	bytes  uint64
}{{"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}}

// Set implements pflag.Value.
func (s *Size) Set(text string) error {
	digits, unit := text, uint64(1)
	if n := len(text); n > 0 {
		for _, u := range sizeUnits {
			if strings.EqualFold(text[n-1:], u.letter) {
				digits, unit = text[:n-1], u.bytes
			}
		}
	}
	base := 10
	if hex, ok := strings.CutPrefix(digits, "0x"); ok {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil {
		return fmt.Errorf("a size is a number of bytes, or one with K, M or G: 512M")
	}
	high, low := bits.Mul64(n, unit)
	if high != 0 {
		return fmt.Errorf("a size is less than 2^64 bytes")
	}
	*s = Size(low)
	return nil
}

// String implements pflag.Value.
func (s *Size) String() string {
	for _, u := range sizeUnits {
		if n := uint64(*s); n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatUint(n/u.bytes, 10) + u.letter
		}
	}
	return strconv.FormatUint(uint64(*s), 10)
}

// Type implements pflag.Value.
func (s *Size) Type() string { return "size" }
