// Package guest carries the embedded guest's image, built from the C in src by
// "make guest".
package guest

import _ "embed"

// Demo is the image for x86_64: an ELF executable with a 64-bit entry point that takes
// boot_params, as vmlinux does.
//
//go:embed demo-x86_64.elf
var Demo []byte
