package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

// host is one on which runs and an exporter find each other.
type host struct {
	t       *testing.T
	program string
	dir     string
}

func newHost(t *testing.T) *host {
	testenv.Emulator(t)
	dir, err := os.MkdirTemp("", "ktstr") // short, for the socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &host{t, program(t), dir}
}

func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.program, args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+h.dir, "XDG_STATE_HOME="+h.dir+"/state", "RUNTIME_DIRECTORY=",
		"STATE_DIRECTORY=")
	return cmd
}

// exporter starts one and returns the address that it serves.
func (h *host) exporter(args ...string) (cmd *exec.Cmd, url string) {
	h.t.Helper()
	cmd = h.command(append([]string{"exporter", "--web.listen-address", "127.0.0.1:0"}, args...)...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines, said := bufio.NewReader(stderr), ""
	for {
		line, err := lines.ReadString('\n')
		said += line
		if err != nil {
			h.t.Fatalf("no address on stderr: %v\n%s", err, said)
		}
		if a := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line); a != "" {
			go io.Copy(io.Discard, lines)
			return cmd, "http://" + a
		}
	}
}

// demo runs one to its end.
func (h *host) demo(args ...string) {
	h.t.Helper()
	cmd := h.command(append([]string{"demo", "--accel", "emulator", "--suite", "s"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Errorf("%v\n%s", err, out)
	}
}

// sample is the sum of the samples that a pattern matches.
func sample(t *testing.T, text, pattern string) (sum float64) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^ktstr_vmm_`+pattern+` (\S+)$`).FindAllStringSubmatch(text, -1) {
		var v float64
		if _, err := fmt.Sscan(m[1], &v); err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

const stimuli = `ring_messages_total\{.*type="STIM"\}`

// Runs that end before, while and after an exporter is killed are all counted, and once.
func TestExporterKilled(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	cmd, url := h.exporter()
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	runs := 0
	for range rounds {
		var all sync.WaitGroup
		for range 4 {
			runs++
			all.Go(func() { h.demo() })
		}
		time.Sleep(150 * time.Millisecond)
		get(t, url+"/metrics", "") // live runs are shown, so they have to be remembered
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		runs++
		h.demo()
		cmd, url = h.exporter()
		all.Wait()
	}
	var text string
	for limit := time.Now().Add(hangLimit); ; time.Sleep(100 * time.Millisecond) {
		text, _ = get(t, url+"/metrics?scraper=new", "") // what it has not seen it sees from 0
		if sample(t, text, `runs_total\{.*outcome="exited".*\}`) == float64(runs) || time.Now().After(limit) {
			break
		}
	}
	if got := sample(t, text, `runs_total\{.*\}`); got != float64(runs) {
		t.Errorf("%v runs, want %d", got, runs)
	}
	if got := sample(t, text, stimuli); got != float64(3*runs) {
		t.Errorf("%v stimuli, want %d", got, 3*runs)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if code := ends(t, cmd); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A run that is killed is lost, and what it has said is counted.
func TestExporterLostRun(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	_, url := h.exporter()
	run := h.command("demo", "--accel", "emulator", "--scenario", "hang")
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, url, `runs_running\{.*\}`, 1)
	_ = run.Process.Kill()
	_ = run.Wait()
	waitFor(t, url, `runs_total\{.*outcome="lost".*\}`, 1)
	waitFor(t, url, `runs_running\{.*\}`, 0)
	out, err := h.command("exporter", "--web.listen-address", "127.0.0.1:0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another exporter") {
		t.Errorf("a second exporter: %v, %s", err, out)
	}
	text, _ := get(t, url+"/metrics", "")
	check := exec.Command(testenv.Tool(t, "promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	_, format := get(t, url+"/metrics", "application/openmetrics-text;version=1.0.0")
	if !strings.HasPrefix(format, "application/openmetrics-text") {
		t.Error(format)
	}
	if text, _ := get(t, url+"/healthz", ""); text != "ok\n" {
		t.Errorf("%q", text)
	}
}

func waitFor(t *testing.T, url, pattern string, want float64) {
	t.Helper()
	for limit := time.Now().Add(hangLimit); ; time.Sleep(50 * time.Millisecond) {
		text, _ := get(t, url+"/metrics", "")
		if sample(t, text, pattern) == want {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s is not %v in\n%s", pattern, want, text)
		}
	}
}

// A textfile is the sum of the runs' reports, and a push is one run's. What fails there changes no exit code.
func TestTextfileAndPush(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	pushed := make(chan string, 8)
	gateway := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		pushed <- r.Method + " " + r.URL.Path
	}))
	defer gateway.Close()
	file := filepath.Join(h.dir, "x.prom")
	var bytes uint64
	for i := range 3 {
		report := filepath.Join(h.dir, fmt.Sprint(i))
		h.demo("--metrics-textfile", file, "--metrics-push", gateway.URL, "--report", report, "--report-format", "json")
		var r struct {
			Suite string
			Ring  struct{ Bytes uint64 }
		}
		text, err := os.ReadFile(report)
		if err == nil {
			err = json.Unmarshal(text, &r)
		}
		if err != nil || r.Suite != "s" {
			t.Fatal(r.Suite, err)
		}
		bytes += r.Ring.Bytes
		if got := <-pushed; got != "PUT /metrics/job/"+tally.Job+"/suite/s" {
			t.Error(got)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := sample(t, string(text), `ring_bytes_total\{.*\}`); got != float64(bytes) {
		t.Errorf("%v bytes, want %d", got, bytes)
	}
	if got := sample(t, string(text), `runs_total\{.*outcome="exited".*\}`); got != 3 {
		t.Errorf("%v runs", got)
	}
	foreign := filepath.Join(h.dir, "foreign.prom")
	if err := os.WriteFile(foreign, []byte("up 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := h.command("demo", "--accel", "emulator", "--metrics-textfile", foreign, "--metrics-push", "http://127.0.0.1:1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "warning: --metrics-textfile") ||
		!strings.Contains(string(out), "warning: --metrics-push") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The units pass systemd's check, and the exporter takes the sockets that systemd gives it.
func TestExporterSystemd(t *testing.T) {
	t.Parallel()
	analyze := testenv.Tool(t, "systemd-analyze")
	h := newHost(t)
	var units []string
	for _, kind := range []string{"service", "socket"} {
		name := "ktstr-vmm-exporter." + kind
		unit, err := os.ReadFile(filepath.Join("..", "..", "configs", "systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		unit = []byte(strings.ReplaceAll(string(unit), "/usr/bin/ktstr-vmm", h.program))
		units = append(units, filepath.Join(h.dir, name))
		if err := os.WriteFile(units[len(units)-1], unit, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := append([]string{"verify", "--recursive-errors=no", "--man=no"}, units...)
	out, err := exec.Command(analyze, verify...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	exporter := h.command("exporter", "--web.systemd-socket")
	shell := []string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`}
	cmd := exec.Command("/bin/sh", append(shell, exporter.Args...)...)
	cmd.Env, cmd.ExtraFiles = exporter.Env, []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if text, _ := get(t, "http://"+l.Addr().String()+"/healthz", ""); text != "ok\n" {
		t.Errorf("%q", text)
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	if code := ends(t, cmd); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// With a web config file the exporter asks for a password. An address beyond loopback without one is warned of.
func TestExporterAuth(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	web := filepath.Join(h.dir, "web.yml")
	const hash = "$2a$04$5fxfMwrTl9laOHfZubo8C./833G6Z.uMUL8dvo14gB2WfVhmsmEby" // of "secret"
	if err := os.WriteFile(web, []byte("basic_auth_users:\n  me: "+hash+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, url := h.exporter("--web.config.file", web, "--web.listen-address", "127.0.0.1:0")
	for password, want := range map[string]int{"": 401, "wrong": 401, "secret": 200} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("me", password)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: %s", password, resp.Status)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if code := ends(t, cmd); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, args := range [][]string{{"exporter", "--web.listen-address", "0.0.0.0:0"},
		{"demo", "--accel", "emulator", "--metrics-listen", "0.0.0.0:0"}} {
		cmd := h.command(args...)
		stderr, err := cmd.StderrPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		said := ""
		for lines := bufio.NewScanner(stderr); !strings.Contains(said, "whoever reaches the address"); {
			if !lines.Scan() {
				t.Errorf("%v: %s", args, said)
				break
			}
			said += lines.Text() + "\n"
		}
		_ = cmd.Process.Signal(syscall.SIGTERM) // a demo may have ended by itself
		go func() { _, _ = io.Copy(io.Discard, stderr) }()
		ends(t, cmd)
	}
}
