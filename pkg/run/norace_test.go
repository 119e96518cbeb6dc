//go:build !race

package run_test

// raceEnabled makes floods shorter: the race detector is there for what happens between
// goroutines, which the first thousands of messages show as well.
const raceEnabled = false
