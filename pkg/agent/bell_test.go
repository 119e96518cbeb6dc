package agent

import (
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// The agent rings for the end, of the command and of the scheduler, and not for what can wait.
func TestRingsForTheEnd(t *testing.T) {
	script := shellJob("echo a; echo b >&2; exit 3")
	gone := shellJob("exit 0")
	gone.Scheduler = []string{"/no/such/scheduler"}
	for name, tc := range map[string]struct {
		job agentproto.Job
		end shm.Type
	}{
		"EXIT": {script, shm.Exit},
		"SCDX": {gone, shm.SchedulerExit},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuestFor(t, tc.job)
			got := g.boot()
			if n := g.rings.Load(); n != 1 || len(of(tc.end, got)) != 1 {
				t.Errorf("%d rings, want 1; %q", n, got)
			}
		})
	}
}
