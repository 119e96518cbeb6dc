package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// binary is what "make build" made.
const binary = "bin/ktstr-vmm"

// starts measures from just before the process is started until the guest has left KVM for the
// first time: its first instruction is a port access.
func starts() error {
	const rounds = 40
	var all []time.Duration
	for range rounds {
		before := time.Now()
		out, err := exec.Command(binary, "demo", "--scenario", "fail", "--report", "-", "--report-format", "json").Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return err
		}
		var report struct {
			StartedAt time.Time `json:"started_at"`
			VM        struct {
				FirstExit float64 `json:"first_exit_seconds"`
			}
		}
		if err := json.Unmarshal(out, &report); err != nil {
			return err
		}
		all = append(all, report.StartedAt.Add(time.Duration(report.VM.FirstExit*1e9)).Sub(before))
	}
	median, _ := spread(all)
	goal("process start to the guest's first instruction", show(all), "≤ 10ms", median <= 10*time.Millisecond)
	return nil
}

// resources measures the processor time of a run whose guest halts, and the memory beside guest
// RAM of that run after a scrape, and of one whose guest floods it.
func resources() error {
	cmd := exec.Command(binary, "demo", "--scenario", "halt", "--grace", "0s", "--timeout", "1m", "--metrics-listen", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	line := make([]byte, 4096)
	n, err := stderr.Read(line)
	if err != nil {
		return err
	}
	url := regexp.MustCompile(`http://[^"]+`).Find(line[:n])
	resp, err := http.Get(string(url))
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	time.Sleep(time.Second)

	const span = 10 * time.Second
	before, err := processorTime(cmd.Process.Pid)
	if err != nil {
		return err
	}
	time.Sleep(span)
	after, err := processorTime(cmd.Process.Pid)
	if err != nil {
		return err
	}
	share := 100 * (after - before).Seconds() / span.Seconds()
	goal("processor time, guest halted, 10 ms polls", fmt.Sprintf("%.2f %% of a core", share), "≤ 0.5 %", share <= 0.5)
	if err := memory("memory beside guest RAM, at rest", cmd.Process.Pid); err != nil {
		return err
	}

	busy := exec.Command(binary, "demo", "--scenario", "flood,count=100000000,size=4096", "--timeout", "1m")
	busy.Stdout = io.Discard
	if err := busy.Start(); err != nil {
		return err
	}
	defer func() {
		_ = busy.Process.Kill()
		_ = busy.Wait()
	}()
	time.Sleep(3 * time.Second)
	return memory("memory beside guest RAM, flooded", busy.Process.Pid)
}

// processorTime is what all threads of a process have run: /proc/PID/task/TID/schedstat.
func processorTime(pid int) (time.Duration, error) {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(stats) == 0 {
		return 0, fmt.Errorf("no schedstat of process %d: %w", pid, err)
	}
	var sum time.Duration
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// memory shows a process's resident memory without its guest's: the ring's memfd, and the large
// anonymous mapping that is RAM above its first 16 MiB. What the guest touched of those is counted
// as ours, for nothing tells it apart.
func memory(name string, pid int) error {
	all, err := smaps.Read(pid)
	if err != nil {
		return err
	}
	const (
		most = 24 << 10 // KiB
		ram  = vm.DefaultMemory - vm.DefaultReserved - 16<<20
	)
	ours := 0
	for _, m := range all {
		if !m.Memfd && m.Size() != ram {
			ours += m.RSS
		}
	}
	goal(name, fmt.Sprintf("%.1f MiB", float64(ours)/1024), "≤ 24 MiB", ours <= most)
	return nil
}
