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
	"strconv"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// vmmBinary is what "make build" made.
const vmmBinary = "bin/ktstr-vmm"

// demo is the program with a scenario, on the target.
func (t target) demo(scenario string, args ...string) *exec.Cmd {
	cmd := exec.Command(vmmBinary, append([]string{"demo", "--accel", string(t.mode), "--scenario", scenario}, args...)...)
	cmd.Env = t.env()
	return cmd
}

// starts measures how soon a guest runs; on the emulator in turns with the least that QEMU can do.
func (t target) starts() error {
	rounds := 40
	if !t.isKVM() {
		rounds = 20
	}
	var own, least []time.Duration
	for range rounds {
		d, err := t.firstInstruction()
		if err != nil {
			return err
		}
		own = append(own, d)
		if t.isKVM() {
			continue
		}
		start := time.Now()
		if err := exec.Command(t.qemu, "--version").Run(); err != nil {
			return err
		}
		least = append(least, time.Since(start))
	}
	const name = "process start to first instruction"
	if t.isKVM() {
		median, _ := spread(own)
		t.goal(name, show(own), "≤ 10ms", median <= 10*time.Millisecond)
		return nil
	}
	t.figure(x86Emulator+" --version", show(least))
	t.figure(name, show(own))
	r := ratio(own, least)
	t.goal("… to that of --version", fmt.Sprintf("%.2f", r), "≤ 2", r <= 2)
	return nil
}

// firstInstruction measures from just before the process is started until the host first hears that the
// guest runs: its first instructions are a port access on KVM, a store to RAM on the emulator.
func (t target) firstInstruction() (time.Duration, error) {
	before := time.Now()
	out, err := t.demo("fail", "--report", "-", "--report-format", "json").Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	var report struct {
		StartedAt time.Time `json:"started_at"`
		VM        struct {
			FirstExit float64 `json:"first_exit_seconds"`
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return 0, err
	}
	if report.VM.FirstExit == 0 {
		return 0, fmt.Errorf("the guest never ran: %s", out)
	}
	return report.StartedAt.Add(time.Duration(report.VM.FirstExit * 1e9)).Sub(before), nil
}

// resources measures the processor time of a run whose guest halts, and the memory beside guest
// RAM of that run after a scrape, and of one whose guest floods it.
func (t target) resources() error {
	cmd := t.demo("halt", "--grace", "0s", "--timeout", "1m", "--metrics-listen", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer end(cmd)
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
	if err := t.atRest(cmd.Process.Pid); err != nil {
		return err
	}

	busy := t.demo("flood,count=100000000,size=4096", "--timeout", "1m")
	busy.Stdout = io.Discard
	if err := busy.Start(); err != nil {
		return err
	}
	defer end(busy)
	time.Sleep(3 * time.Second)
	return t.memory("memory beside guest RAM, flooded", busy.Process.Pid)
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// atRest measures a process whose guest does nothing.
func (t target) atRest(pid int) error {
	const span = 10 * time.Second
	seconds := func(pid int) (float64, error) {
		d, err := processorTime(pid)
		return d.Seconds(), err
	}
	used, err := t.forBoth(pid, seconds)
	if err != nil {
		return err
	}
	time.Sleep(span)
	after, err := t.forBoth(pid, seconds)
	if err != nil {
		return err
	}
	for i := range used {
		used[i] = 100 * (after[i] - used[i]) / span.Seconds()
	}
	t.beside("processor time, guest halted, 10 ms polls", "%", used, 0.5)
	return t.memory("memory beside guest RAM, at rest", pid)
}

// forBoth measures our process and, on the emulator, its child.
func (t target) forBoth(pid int, measure func(pid int) (float64, error)) ([]float64, error) {
	pids := []int{pid}
	if !t.isKVM() {
		all, err := children(pid)
		if err != nil {
			return nil, err
		}
		if len(all) != 1 {
			return nil, fmt.Errorf("process %d has %d children, its emulator is to be the one", pid, len(all))
		}
		pids = append(pids, all...)
	}
	var values []float64
	for _, pid := range pids {
		v, err := measure(pid)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

// beside prints what ours needs, and the emulator beside it. The goal is for KVM, where there is no more.
func (t target) beside(name, unit string, values []float64, most float64) {
	if t.isKVM() {
		t.goal(name, fmt.Sprintf("%.2f %s", values[0], unit), fmt.Sprintf("≤ %v %s", most, unit), values[0] <= most)
		return
	}
	t.figure(name, fmt.Sprintf("%.2f %s, and QEMU %.2f %[2]s", values[0], unit, values[1]))
}

// children are a process's.
func children(pid int) ([]int, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		for word := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list, err)
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
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

// memory shows the resident memory of a process and its emulator without their guest's: the ring's memfd
// or that of all RAM, and with KVM the large anonymous mapping that is RAM above its first 16 MiB. What
// the guest touched of those is counted as ours, for nothing tells it apart.
func (t target) memory(name string, pid int) error {
	const ram = vm.DefaultMemory - vm.DefaultReserved - 16<<20
	mib, err := t.forBoth(pid, func(pid int) (float64, error) {
		all, err := smaps.Read(pid)
		kib := 0
		for _, m := range all {
			if !m.Memfd && m.Size() != ram {
				kib += m.RSS
			}
		}
		return float64(kib) / 1024, err
	})
	if err != nil {
		return err
	}
	t.beside(name, "MiB", mib, 24)
	return nil
}
