package agent

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGoneWithin(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if goneWithin(fd, 20*time.Millisecond) {
		t.Error("a process that runs is gone")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !goneWithin(fd, time.Minute) {
		t.Error("a process that was killed is not gone")
	}
	_ = cmd.Wait()
}
