package agent

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	// schedExtState says whether a sched_ext scheduler is in charge: kernel 6.12 and later, where
	// it is configured.
	schedExtState = "/sys/kernel/sched_ext/state"
	// schedulerUp is how long the scheduler may take to be.
	schedulerUp = 10 * time.Second
	// schedulerSettles is how long it has to live where the kernel has no word for it.
	schedulerSettles = 100 * time.Millisecond
)

// startScheduler starts the scheduler under test and waits until it is up. One that does not come
// up, or ends at once, is seen by wait.
func (a *agent) startScheduler() error {
	if len(a.spec.Scheduler) == 0 {
		return nil
	}
	cmd := &exec.Cmd{Path: a.spec.Scheduler[0], Args: a.spec.Scheduler, Env: a.spec.Env, Dir: "/", Stdout: os.Stdout, Stderr: os.Stderr}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the scheduler: %w", err)
	}
	a.scheduler = cmd.Process.Pid
	if _, err := os.Stat(schedExtState); err != nil {
		time.Sleep(schedulerSettles)
		return nil
	}
	for end := time.Now().Add(schedulerUp); time.Now().Before(end); time.Sleep(time.Millisecond) {
		state, err := os.ReadFile(schedExtState)
		if err == nil && strings.TrimSpace(string(state)) == "enabled" {
			return nil
		}
	}
	return nil
}
