//go:build !race

package testenv

// Race reports whether the race detector looks at this process.
const Race = false
