package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/needs"
)

const hangLimit = 30 * time.Second

// ends waits for a process and returns its exit code; -1 where a signal killed it.
func ends(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(hangLimit, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

// serve starts the program with a metrics listener and returns the address that it prints.
func serve(t *testing.T, args ...string) (cmd *exec.Cmd, url string) {
	t.Helper()
	needs.KVM(t)
	cmd = exec.Command(program(t), append(args, "--metrics-listen", "127.0.0.1:0")...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("no address on stderr: %v", err)
		}
		if url = regexp.MustCompile(`http://127\.0\.0\.1:\d+/metrics`).FindString(line); url != "" {
			go io.Copy(io.Discard, lines)
			return cmd, url
		}
	}
}

func get(t *testing.T, url, accept string) (body string, contentType string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(text), resp.Header.Get("Content-Type")
}

// While a guest runs, a scrape has every metric of the contract, and promtool has nothing to say.
func TestMetricsWhileAGuestRuns(t *testing.T) {
	cmd, url := serve(t, "demo", "--scenario", "hang", "--grace", "0s")
	body, _ := get(t, url, "text/plain")
	for _, name := range []string{
		`ktstr_vmm_ring_messages_total{type="STIM"} 0`, `ktstr_vmm_ring_messages_total{type="unknown"} 0`,
		"ktstr_vmm_ring_bytes_total 0", "ktstr_vmm_ring_drops_total 0", "ktstr_vmm_ring_crc_errors_total 0",
		`ktstr_vmm_ring_faults_total{kind="bad_length"} 0`, "ktstr_vmm_ring_used_bytes 0", "ktstr_vmm_ring_capacity_bytes 1.6777176e+07",
		"ktstr_vmm_drain_duration_seconds_count", "ktstr_vmm_poll_late_seconds_bucket",
		`ktstr_vmm_kvm_exits_total{reason="io"}`, "ktstr_vmm_guest_memory_bytes 5.36870912e+08",
		`ktstr_vmm_run_info{arch="amd64",id="`, `kernel="demo:hang"`, `ktstr_vmm_run_outcome{outcome="timeout"} 0`,
		"ktstr_vmm_run_duration_seconds ", "go_goroutines ", "process_cpu_seconds_total ",
	} {
		if !strings.Contains(body, name) {
			t.Errorf("no %s in\n%s", name, body)
		}
	}
	check := exec.Command(needs.Tool(t, "promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(body)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	if body, contentType := get(t, url, "application/openmetrics-text"); !strings.Contains(contentType, "openmetrics") || !strings.HasSuffix(body, "# EOF\n") {
		t.Errorf("OpenMetrics: %s", contentType)
	}
	if body, _ := get(t, strings.TrimSuffix(url, "metrics")+"healthz", ""); body != "ok\n" {
		t.Errorf("healthz: %q", body)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if code := ends(t, cmd); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
}

// After the run its metrics linger, until somebody has enough.
func TestMetricsLinger(t *testing.T) {
	cmd, url := serve(t, "demo", "--scenario", "fail", "--metrics-linger", "1h")
	deadline := time.Now().Add(hangLimit)
	for {
		body, _ := get(t, url, "text/plain")
		if strings.Contains(body, `ktstr_vmm_run_outcome{outcome="exited"} 1`) && strings.Contains(body, `ktstr_vmm_ring_messages_total{type="EXIT"} 1`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no outcome in\n%s", body)
		}
		time.Sleep(10 * time.Millisecond)
	}
	cmd.Process.Signal(os.Interrupt)
	if code := ends(t, cmd); code != 3 {
		t.Errorf("exit code %d, want the guest's 3", code)
	}
}

// Signals: the guest is asked to stop and its last words are in the report.
func TestInterrupted(t *testing.T) {
	needs.KVM(t)
	for signal, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		cmd := exec.Command(program(t), "demo", "--scenario", "graceful", "--report", "-", "--report-format", "json")
		var out bytes.Buffer
		cmd.Stdout = &out
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(stderr)
		if line, err := lines.ReadString('\n'); !strings.Contains(line, "SCST") {
			t.Fatalf("%q, %v", line, err)
		}
		cmd.Process.Signal(signal)
		go io.Copy(io.Discard, lines)
		if code := ends(t, cmd); code != want {
			t.Errorf("%v: exit code %d, want %d", signal, code, want)
		}
		var r struct {
			Outcome       string
			ExitCode      int  `json:"exit_code"`
			GuestExitCode *int `json:"guest_exit_code"`
		}
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Outcome != "interrupted" || r.ExitCode != want || r.GuestExitCode == nil {
			t.Errorf("%v: %+v, %v", signal, r, err)
		}
	}
}

// Nobody reads the output, or who read it went away: the run ends all the same, with its own code.
func TestOutputThatNobodyReads(t *testing.T) {
	needs.KVM(t)
	path := program(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Full pipe: the first byte that is written blocks.
	fd := int(w.Fd()) // once: each call makes the file blocking
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := syscall.Write(fd, make([]byte, 4096)); err != nil {
			break
		}
	}
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.Command(path, "demo", "--scenario", "fail", "--report", report, "--report-format", "json")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code := ends(t, cmd); code != 3 {
		t.Errorf("stuck reader: exit code %d, want 3", code)
	}
	if text, err := os.ReadFile(report); err != nil || !strings.Contains(string(text), `"exit_code": 3`) {
		t.Errorf("stuck reader: %s, %v", text, err)
	}

	r2, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r2.Close()
	cmd = exec.Command(path, "demo", "--scenario", "fail")
	cmd.Stdout = w2
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w2.Close()
	if code := ends(t, cmd); code != 3 {
		t.Errorf("broken pipe: exit code %d, want 3", code)
	}
}

// On a host whose /dev/kvm is none: one line that says so, 125, and a report that says the same.
func TestHostWithoutKVM(t *testing.T) {
	needs.KVM(t)
	if os.Geteuid() != 0 {
		needs.Missing(t, "root", os.ErrPermission)
	}
	unshare, path := needs.Tool(t, "unshare"), program(t)
	inHost := func(args ...string) *exec.Cmd {
		return exec.Command(unshare, append([]string{"--mount", "sh", "-c", `mount --bind /dev/null /dev/kvm && exec "$@"`, "sh", path}, args...)...)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	// No machine, no metrics: there is nothing to linger for.
	cmd := inHost("demo", "--report", report, "--report-format", "json", "--metrics-listen", "127.0.0.1:0", "--metrics-linger", "1h")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code := ends(t, cmd); code != 125 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), "/dev/kvm is no KVM device") {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
	if text, err := os.ReadFile(report); err != nil || !strings.Contains(string(text), `"outcome": "error"`) {
		t.Errorf("%s, %v", text, err)
	}
	cmd = inHost("doctor")
	out, err := cmd.Output()
	if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.Contains(string(out), "fail  KVM") {
		t.Errorf("doctor: exit code %d, %s, %v", code, out, err)
	}
}
