//go:build linuxbed

package linux

import (
	"fmt"
	"testing"
)

// An emulated kernel that measures its clock by another hangs in one of four boots, and 100 in a row that do not are
// how we know that it does not measure: 50 here, and 50 of the other kernel, in two rows side by side. In the bed,
// where KVM runs them and the clock is no trap, the suite is short and boots a few.
func TestBootsInARow(t *testing.T) {
	t.Parallel()
	rows, boots := 2, 25
	if testing.Short() {
		rows, boots = 1, 3
	}
	for row := range rows {
		t.Run(fmt.Sprint(row+1), func(t *testing.T) {
			t.Parallel()
			for boot := range boots {
				cpus := []int{1, 2, 4}[(row+boot)%3]
				e := vmmRun(t, "--cpus", fmt.Sprint(cpus), "--", "busybox", "nproc")
				if e.want(t, 0, fmt.Sprintln(cpus)); t.Failed() { // by its deadline, where it hangs
					t.Fatalf("boot %d, with %d processors", boot+1, cpus)
				}
			}
		})
	}
}
