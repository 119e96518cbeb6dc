// Package configs has the files that users copy, for the program to print.
package configs

import "embed"

// Kernel has the fragments of kernel configurations: kernel/NAME.config.
//
//go:embed kernel/*.config
var Kernel embed.FS
