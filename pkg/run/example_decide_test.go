package run_test

import (
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// Of all that happened in a run, what is worst is its outcome; the exit code is the guest's only where nothing else
// happened.
func ExampleDecide() {
	code := int32(0)
	for _, e := range []run.Evidence{
		{GuestExit: &code},
		{GuestExit: &code, TimedOut: "the soft deadline passed"},
		{GuestExit: &code, SchedulerExit: &run.SchedulerExit{}},
		{Faults: 2},
		{},
	} {
		outcome, exit, reason := run.Decide(e)
		fmt.Printf("%-14v %3d  %s\n", outcome, exit, reason)
	}
	// Output:
	// exited           0  the guest exited with code 0
	// timeout        124  the soft deadline passed; the guest exited with code 0
	// scheduler_exit 121  the scheduler under test exited without a code; the guest exited with code 0
	// corrupt        123  the ring broke the protocol (2 faults, 0 damaged messages) and no EXIT could be read
	// no_verdict     120  the machine ended and no EXIT was seen
}
