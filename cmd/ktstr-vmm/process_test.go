package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
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
	t.Parallel()
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		cmd, url := serve(t, "demo", "--accel", b.Name(), "--scenario", "hang", "--grace", "0s")
		body, _ := get(t, url, "text/plain")
		for _, name := range []string{
			`ktstr_vmm_ring_messages_total{type="STIM"} 0`, `ktstr_vmm_ring_messages_total{type="unknown"} 0`,
			"ktstr_vmm_ring_bytes_total 0", "ktstr_vmm_ring_drops_total 0", "ktstr_vmm_ring_crc_errors_total 0",
			`ktstr_vmm_ring_faults_total{kind="bad_length"} 0`, "ktstr_vmm_ring_used_bytes 0",
			"ktstr_vmm_ring_capacity_bytes 1.6777176e+07",
			"ktstr_vmm_drain_duration_seconds_count", "ktstr_vmm_poll_late_seconds_bucket",
			"ktstr_vmm_doorbell_rings_total 0", "ktstr_vmm_doorbell_drains_total 0",
			"ktstr_vmm_guest_memory_bytes 5.36870912e+08",
			`ktstr_vmm_run_info{accelerator="` + b.Name() + `",arch="x86_64",id="`, `kernel="demo:hang"`,
			`ktstr_vmm_run_outcome{outcome="timeout"} 0`,
			"ktstr_vmm_run_duration_seconds ", "go_goroutines ", "process_cpu_seconds_total ",
		} {
			if !strings.Contains(body, name) {
				t.Errorf("no %s in\n%s", name, body)
			}
		}
		check := exec.Command(testenv.Tool(t, "promtool"), "check", "metrics")
		check.Stdin = strings.NewReader(body)
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
		if body, contentType := get(t, url, "application/openmetrics-text"); !strings.Contains(contentType, "openmetrics") ||
			!strings.HasSuffix(body, "# EOF\n") {
			t.Errorf("OpenMetrics: %s", contentType)
		}
		if body, _ := get(t, strings.TrimSuffix(url, "metrics")+"healthz", ""); body != "ok\n" {
			t.Errorf("healthz: %q", body)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		if code := ends(t, cmd); code != 143 {
			t.Errorf("exit code %d, want 143", code)
		}
	})
}

// After the run its metrics linger, until somebody has enough.
func TestMetricsLinger(t *testing.T) {
	t.Parallel()
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		cmd, url := serve(t, "demo", "--accel", b.Name(), "--scenario", "fail", "--metrics-linger", "1h")
		deadline := time.Now().Add(hangLimit)
		for {
			body, _ := get(t, url, "text/plain")
			if strings.Contains(body, `ktstr_vmm_run_outcome{outcome="exited"} 1`) &&
				strings.Contains(body, `ktstr_vmm_ring_messages_total{type="EXIT"} 1`) {
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
	})
}

// Signals: the guest is asked to stop and its last words are in the report.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for signal, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
			cmd := exec.Command(program(t), "demo", "--accel", b.Name(), "--scenario", "graceful", "--report", "-",
				"--report-format", "json")
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
			if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Outcome != "interrupted" ||
				r.ExitCode != want || r.GuestExitCode == nil {
				t.Errorf("%v: %+v, %v", signal, r, err)
			}
		}
	})
}

// However the program ends, its emulator ends with it.
func TestKilledProgramLeavesNoChild(t *testing.T) {
	t.Parallel()
	testenv.Emulator(t)
	cmd, url := serve(t, "demo", "--accel", "emulator", "--scenario", "hang")
	get(t, url, "text/plain")
	children := vmtest.Children(t, cmd.Process.Pid)
	if len(children) != 1 {
		t.Fatalf("children %v", children)
	}
	child := fmt.Sprint(children[0])
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = ends(t, cmd)
	for deadline := time.Now().Add(hangLimit); ; time.Sleep(10 * time.Millisecond) {
		// One that nobody has reaped yet has no memory any more.
		status, err := os.ReadFile(filepath.Join("/proc", child, "status"))
		if err != nil || strings.Contains(string(status), "State:\tZ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s is left:\n%s", child, status)
		}
	}
}

// Nobody reads the output, or who read it went away: the run ends all the same, with its own code.
func TestOutputThatNobodyReads(t *testing.T) {
	t.Parallel()
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		path := program(t)
		w := pipe(t, stuck)
		defer w.Close()
		report := filepath.Join(t.TempDir(), "report.json")
		cmd := exec.Command(path, "demo", "--accel", b.Name(), "--scenario", "fail", "--report", report,
			"--report-format", "json")
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
		cmd = exec.Command(path, "demo", "--accel", b.Name(), "--scenario", "fail")
		cmd.Stdout = w2
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w2.Close()
		if code := ends(t, cmd); code != 3 {
			t.Errorf("broken pipe: exit code %d, want 3", code)
		}
	})
}

// On a host that has neither KVM nor QEMU: one line that says so, 125, and a report that says the same where
// a back end was asked for; doctor says what to install.
func TestHostWithoutAnything(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", os.ErrPermission)
	}
	unshare, path := testenv.Tool(t, "unshare"), program(t)
	inHost := func(args ...string) *exec.Cmd {
		// A /dev without kvm, and a PATH with nothing on it but a package manager.
		script := `mount -t tmpfs none /dev && dir=$(mktemp -d /dev/XXXXXX) && ln -s /bin/true $dir/apt &&
			PATH=$dir exec "$@"`
		return exec.Command(unshare, append([]string{"--mount", "/bin/sh", "-c", script, "sh", path}, args...)...)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	getKVM, install := "load the kvm_intel or kvm_amd module", "apt install qemu-system-x86"
	if kernel.HostArch() == "arm64" {
		getKVM, install = "the firmware has to start it at EL2", "apt install qemu-system-arm"
	}
	for name, tc := range map[string]struct{ args, says []string }{
		"kvm":      {[]string{"--accel", "kvm"}, []string{"no KVM on this host: /dev/kvm", getKVM, "--accel emulator"}},
		"emulator": {[]string{"--accel", "emulator"}, []string{"QEMU is not installed", install}},
		"auto":     {nil, []string{"nothing here can run the guest", "/dev/kvm", getKVM, install}},
	} {
		// No machine, no metrics: there is nothing to linger for.
		args := append([]string{"demo", "--report", report, "--report-format", "json", "--metrics-listen", "127.0.0.1:0",
			"--metrics-linger", "1h"}, tc.args...)
		cmd := inHost(args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if code := ends(t, cmd); code != 125 || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%s: exit code %d, %s", name, code, stderr.String())
		}
		for _, text := range tc.says {
			if !strings.Contains(stderr.String(), text) {
				t.Errorf("%s: no %q in %s", name, text, stderr.String())
			}
		}
	}
	if text, err := os.ReadFile(report); err != nil || !strings.Contains(string(text), `"outcome": "error"`) {
		t.Errorf("%s, %v", text, err)
	}
	out, err := inHost("doctor").Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 125 || !strings.Contains(string(out), "warn  KVM") ||
		!strings.Contains(string(out), "for x86_64 guests: QEMU is not installed") ||
		!strings.Contains(string(out), "apt install qemu-system-x86\n") ||
		!strings.Contains(string(out), "apt install qemu-system-arm\n") ||
		!strings.Contains(string(out), "fail  Linux guests") {
		t.Errorf("doctor: %v, %s", err, out)
	}
}

// On this host, whatever it has, one back end works, and auto takes one that does.
func TestDoctorAndAuto(t *testing.T) {
	t.Parallel()
	path := program(t)
	out, err := exec.Command(path, "doctor").Output()
	if err != nil && testenv.EmulatorMissing() == nil {
		t.Errorf("doctor: %v", err)
	}
	for _, line := range []string{`KVM  `, `emulator  .*x86_64 guests`, `emulator  .*arm64 guests`,
		`memory  .*MiB available`, `Linux guests `} {
		if !regexp.MustCompile(`(?m)^(ok  |warn|fail)  ` + line).Match(out) {
			t.Errorf("no line %q in\n%s", line, out)
		}
	}
	text, jsonErr := exec.Command(path, "doctor", "--json").Output()
	var d diagnosis
	if err := json.Unmarshal(text, &d); err != nil || d.Schema != 1 || d.Linux != (jsonErr == nil) ||
		len(d.Findings) != strings.Count(string(out), "\n") {
		t.Errorf("%v, %v: %s", jsonErr, err, text)
	}
	cmd := exec.Command(path, "demo", "--scenario", "fail")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code := ends(t, cmd); code != 3 {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
	emulated := testenv.Backend(t).Name() == "emulator"
	said := strings.Count(stderr.String(), "QEMU's emulator runs the guest")
	if strings.Count(stderr.String(), "\n") != said || (said == 1) != emulated {
		t.Errorf("emulated: %t, stderr %s", emulated, stderr.String())
	}
}
