package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// place is where a user's runs and who asks them find each other.
type place struct {
	t       *testing.T
	program string
	dir     string // XDG_RUNTIME_DIR
}

func newPlace(t *testing.T) *place {
	dir, err := os.MkdirTemp("", "ctl") // short, for the sockets' addresses
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &place{t, program(t), dir}
}

func (p *place) command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.program, args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+p.dir)
	return cmd
}

// start starts a run and returns when it can be asked.
func (p *place) start(args ...string) (run *exec.Cmd, stderr *bytes.Buffer, id string) {
	p.t.Helper()
	run, stderr = p.command(args...), &bytes.Buffer{}
	run.Stderr = stderr
	if err := run.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = run.Process.Kill() })
	for limit := time.Now().Add(hangLimit); ; time.Sleep(20 * time.Millisecond) {
		for _, s := range p.ps() {
			if s.PID == run.Process.Pid {
				return run, stderr, s.ID
			}
		}
		if time.Now().After(limit) {
			p.t.Fatalf("the run is not listed: %s", stderr)
		}
	}
}

func (p *place) ps() (runs []control.Status) {
	p.t.Helper()
	out, err := p.command("ps", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &runs)
	}
	if err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
	return runs
}

// ctl asks, and returns the exit code, stdout and stderr.
func (p *place) ctl(args ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	cmd := p.command(append([]string{"ctl"}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	code = ends(p.t, cmd)
	return code, out.String(), said.String()
}

// does asks for what has to succeed, and returns what it printed.
func (p *place) does(args ...string) string {
	p.t.Helper()
	code, stdout, stderr := p.ctl(args...)
	if code != 0 || stderr != "" {
		p.t.Errorf("ctl %q: exit code %d, %s", args, code, stderr)
	}
	return stdout
}

// Each action, against a run that goes on until it is told to stop; its followers get to its end all that is in its
// report.
func TestCtl(t *testing.T) {
	t.Parallel()
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		p := newPlace(t)
		file := filepath.Join(p.dir, "report.json")
		run, stderr, id := p.start("demo", "--accel", m.Backend.Name(), "--arch", m.Arch, "--scenario",
			"ok,steps=60000,step_ms=1", "--report", file, "--report-format", "json")
		tails := map[string]*exec.Cmd{}
		outs := map[string]*[2]bytes.Buffer{}
		socket := filepath.Join(p.dir, "ktstr-vmm", id+".sock")
		for name, args := range map[string][]string{
			"lines":   {"ctl", id, "tail", "-f"},
			"json":    {"ctl", id, "tail", "-f", "--json", "--type", "stim"},
			"inspect": {"inspect", "--follow", socket, "--since", "1h", "--json", "--type", "stim"},
		} {
			tail := p.command(args...)
			outs[name] = &[2]bytes.Buffer{}
			tail.Stdout, tail.Stderr = &outs[name][0], &outs[name][1]
			if err := tail.Start(); err != nil {
				t.Fatal(err)
			}
			tails[name] = tail
		}

		for limit := time.Now().Add(hangLimit); !strings.Contains(p.does("tail"), "  STIM  step 9 "); {
			if time.Now().After(limit) {
				t.Fatal("the tenth step never came")
			}
		}
		status := p.does(id[:3], "status")
		for _, part := range []string{id + ": demo\n", "demo:ok", m.Arch + " on " + m.Backend.Name(), "phase       command",
			"last STIM   step "} {
			if !strings.Contains(status, part) {
				t.Errorf("status: no %q in\n%s", part, status)
			}
		}
		var s control.Status
		if err := json.Unmarshal([]byte(p.does("status", "--json")), &s); err != nil || s.ID != id || s.ByType["SCST"] != 1 ||
			s.Timeout != 60 || s.LastStimulus == nil {
			t.Errorf("status --json: %+v, %v", s, err)
		}
		if out := p.does("metrics"); !strings.Contains(out, `ktstr_vmm_run_info{accelerator="`+m.Backend.Name()+`"`) {
			t.Errorf("metrics: %s", out)
		}
		if out := p.does("console"); out != "" {
			t.Errorf("console: %q", out)
		}
		p.showsRegisters(m.Arch)
		code, out, said := p.ctl("shell")
		if code != 125 || out != "" || !strings.Contains(said, "one of ktstr-vmm run has") {
			t.Errorf("shell: exit code %d, %s%s", code, out, said)
		}
		p.does("dump")
		p.does("stall")
		p.does(id, "signal", "1", "0x2a")
		p.inspects()
		p.isLeft(id)
		p.does("stop", "--now")

		if code := ends(t, run); code != 143 {
			t.Errorf("exit code %d, %s", code, stderr)
		}
		r := readReport(t, file)
		if !strings.Contains(r.Reason, "ktstr-vmm ctl stop") || r.ID != id {
			t.Errorf("%s, %s", r.ID, r.Reason)
		}
		kinds := map[string]bool{}
		for _, e := range r.Events {
			kinds[e.Kind] = true
		}
		for _, kind := range []string{"dump_request", "stall_request", "signal", "stop"} {
			if !kinds[kind] {
				t.Errorf("no event %s in %+v", kind, r.Events)
			}
		}
		over := fmt.Sprintf("ktstr-vmm: the run %s (demo) is over: interrupted: %s\n", id, r.Reason)
		for name, tail := range tails {
			if code := ends(t, tail); code != 0 || outs[name][1].String() != over {
				t.Errorf("tail of %s: exit code %d, %s", name, code, &outs[name][1])
			}
		}
		hasAll(t, &outs["json"][0], r)
		if n := strings.Count(outs["lines"][0].String(), "  STIM  step "); n != len(r.Stimuli) {
			t.Errorf("%d lines of %d stimuli", n, len(r.Stimuli))
		}
		if n := strings.Count(outs["inspect"][0].String(), `", "type": "STIM", "type_id": `); n != len(r.Stimuli) {
			t.Errorf("inspect: %d lines of %d stimuli", n, len(r.Stimuli))
		}
		if code, _, stderr := p.ctl("status"); code != 125 || stderr != "ktstr-vmm: no run of this user is going on\n" {
			t.Errorf("after the end: %d, %s", code, stderr)
		}
	})
}

// showsRegisters looks at the registers of the only run.
func (p *place) showsRegisters(arch string) {
	p.t.Helper()
	pc := map[string]string{"x86_64": "rip", "arm64": "pc"}[arch]
	text := p.does("registers")
	if !strings.HasPrefix(text, "CPU 0: ") || !strings.Contains(text, "pc 0x") || !strings.Contains(text, "  "+pc+" ") {
		p.t.Errorf("registers:\n%s", text)
	}
	var cpus []report.CPURegisters
	err := json.Unmarshal([]byte(p.does("registers", "--json")), &cpus)
	if err != nil || len(cpus) == 0 || cpus[0].PC == "" || cpus[0].Registers[pc] != cpus[0].PC {
		p.t.Errorf("registers --json: %+v, %v", cpus, err)
	}
	file := filepath.Join(p.dir, "System.map")
	kernel := kerneltest.Kernel{Arch: arch}
	if err := os.WriteFile(file, kernel.SystemMap(), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if text := p.does("registers", "--symbols", file); !strings.HasPrefix(text, "CPU 0: ") {
		p.t.Errorf("registers --symbols:\n%s", text)
	}
}

// hasAll checks that a follower got all stimuli.
func hasAll(t *testing.T, out io.Reader, r report.Report) {
	t.Helper()
	got := 0
	for d := json.NewDecoder(out); ; got++ {
		var m control.Message
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		s, err := shm.DecodeStimulus(m.Payload)
		if err != nil || got < len(r.Stimuli) && s != r.Stimuli[got].StimulusEvent {
			t.Fatalf("message %d: %+v, %v", got, m, err)
		}
	}
	if got != len(r.Stimuli) || got < 10 {
		t.Errorf("%d messages of %d stimuli", got, len(r.Stimuli))
	}
}

func readReport(t *testing.T, file string) (r report.Report) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// inspects reads the ring of the only run.
func (p *place) inspects() {
	p.t.Helper()
	image := filepath.Join(p.dir, "ring")
	f, err := os.Create(image)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := p.command("ctl", "ring")
	cmd.Stdout = f
	if err := errors.Join(cmd.Start(), f.Close()); err != nil {
		p.t.Fatal(err)
	}
	if code := ends(p.t, cmd); code != 0 {
		p.t.Errorf("ring: exit code %d", code)
	}
	out, err := p.command("inspect", "--all", image).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "  STIM  24 bytes  step 9 ") ||
		!strings.Contains(string(out), "stall 0x53, slot 0 0x00, slot 1 0x2a") {
		p.t.Errorf("inspect of the ring: %v\n%.2000s", err, out)
	}
}

// isLeft has followers leave a run that goes on: by Ctrl-C, and because who read their output is gone.
func (p *place) isLeft(id string) {
	p.t.Helper()
	follow := func(args ...string) (cmd *exec.Cmd, r *os.File, said *bytes.Buffer) {
		r, w, err := os.Pipe()
		if err != nil {
			p.t.Fatal(err)
		}
		cmd, said = p.command(append([]string{"ctl", id}, args...)...), &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = w, said
		if err := errors.Join(cmd.Start(), w.Close()); err != nil {
			p.t.Fatal(err)
		}
		return cmd, r, said
	}
	cmd, r, said := follow("tail", "-f")
	defer r.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil { // before, the signal's default action would do
		p.t.Fatal(err)
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	if code := ends(p.t, cmd); code != 0 || said.Len() > 0 {
		p.t.Errorf("interrupted: exit code %d, %s", code, said)
	}
	for _, args := range [][]string{{"tail", "-f"}, {"tail", "-f", "--type", "CRSH"}, {"console", "-f"}} {
		cmd, r, said := follow(args...)
		_ = r.Close()
		if code := ends(p.t, cmd); code != 0 || said.Len() > 0 {
			p.t.Errorf("%q, and nobody reads it: exit code %d, %s", args, code, said)
		}
	}
}

// A guest that listens is asked to stop, and its run is one that was interrupted all the same.
func TestCtlStopAsksTheGuest(t *testing.T) {
	t.Parallel()
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		p := newPlace(t)
		file := filepath.Join(p.dir, "report.json")
		run, stderr, id := p.start("demo", "--accel", m.Backend.Name(), "--arch", m.Arch, "--scenario", "graceful",
			"--report", file, "--report-format", "json")
		p.does(id, "stop")
		if code := ends(t, run); code != 143 {
			t.Errorf("exit code %d, %s", code, stderr)
		}
		if r := readReport(t, file); r.Outcome != "interrupted" || r.GuestExitCode == nil || *r.GuestExitCode != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// What is asked of no run, or of one of many, is one line that says what to do.
func TestCtlFindsRuns(t *testing.T) {
	t.Parallel()
	accel := testenv.Backend(t).Name()
	p := newPlace(t)
	_, _, a := p.start("demo", "--accel", accel, "--scenario", "hang")
	killed, _, b := p.start("demo", "--accel", accel, "--scenario", "hang")
	socket := filepath.Join(p.dir, "c.sock")
	elsewhere := p.command("demo", "--accel", accel, "--scenario", "hang", "--control", socket)
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = elsewhere.Process.Kill() })
	for limit := time.Now().Add(hangLimit); ; time.Sleep(20 * time.Millisecond) {
		if code, _, _ := p.ctl("--control", socket, "status"); code == 0 || time.Now().After(limit) {
			break
		}
	}
	if out := p.does("status", "--control="+socket); !strings.Contains(out, "demo:hang") {
		t.Errorf("%s", out)
	}
	out, err := p.command("ps").Output()
	if lines := strings.Split(string(out), "\n"); err != nil || len(lines) != 4 || !strings.HasPrefix(lines[0], "ID ") ||
		!strings.HasPrefix(lines[1], a+"  demo  demo:hang  ") || !strings.HasPrefix(lines[2], b) {
		t.Errorf("ps: %v\n%s", err, out)
	}
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"which": {[]string{"status"}, "say which run is meant, as in ktstr-vmm ctl ID status: " + a +
			" (demo on demo:hang), " + b + " (demo on demo:hang)\n"},
		"none":      {[]string{"0000000000000000", "dump"}, `begins with "0000000000000000"; ktstr-vmm ps lists`},
		"no action": {[]string{a}, "ctl " + a + ": what is to be done? One of console, "},
		"no ID":     {[]string{"x", "dump"}, `"x" is neither an ID`},
		"both":      {[]string{a, "dump", "--control", socket}, "both an ID"},
		"no socket": {[]string{"dump", "--control", socket + "x"}, socket + "x: no run listens there"},
		"slot":      {[]string{a, "signal", "2", "1"}, "demo): signal: the slot 2 is neither 0 nor 1"},
		"value":     {[]string{a, "signal", "0", "256"}, `the value "256"`},
		"type":      {[]string{a, "tail", "--type", "NONE"}, `--type: "NONE" is no type`},
		"symbols":   {[]string{a, "registers", "--symbols", socket + "x"}, "--symbols: open " + socket + "x: "},
		"no dashes": {[]string{a, "shell", "ls"}, "as in ktstr-vmm ctl shell -- ls"},
		"argument":  {[]string{a, "dump", "now"}, "now"},
	} {
		code, stdout, stderr := p.ctl(tc.args...)
		if code != 125 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tc.says) {
			t.Errorf("%s: %d, %s%s", name, code, stdout, stderr)
		}
	}
	for args, want := range map[string]string{
		"ctl ":              a + "\tdemo on demo:hang\n",
		"ctl " + a[:4]:      a + "\tdemo on demo:hang\n",
		"ctl " + a + " ta":  "tail\tPrint the guest's messages\n",
		"ctl tail --type S": "STIM\n",
	} {
		out, err := p.command(append([]string{"__complete"}, strings.Split(args, " ")...)...).Output()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("completion of %q: %v\n%s", args, err, out)
		}
	}

	_ = killed.Process.Kill()
	_ = killed.Wait()
	left := filepath.Join(p.dir, "ktstr-vmm", b+".sock")
	if _, err := os.Stat(left); err != nil {
		t.Errorf("a killed run's socket: %v", err)
	}
	if runs := p.ps(); len(runs) != 1 || runs[0].ID != a {
		t.Errorf("after a kill: %+v", runs)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a killed run's socket after ps: %v", err)
	}
}

// A socket that nobody has asked for is no reason to fail, nor to say anything; one that was asked for is.
func TestControlSocketThatCannotBe(t *testing.T) {
	t.Parallel()
	accel := testenv.Backend(t).Name()
	p := newPlace(t)
	run := func(env string, args ...string) (int, string) {
		cmd := p.command(append([]string{"demo", "--accel", accel, "--scenario", "fail"}, args...)...)
		cmd.Env = append(cmd.Env, env)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return ends(t, cmd), stderr.String()
	}
	file := filepath.Join(p.dir, "file")
	open := filepath.Join(p.dir, "open")
	err := errors.Join(os.WriteFile(file, nil, 0o600), os.MkdirAll(filepath.Join(open, "ktstr-vmm"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, open, "/proc/none", p.dir + "/" + strings.Repeat("x", 100)} {
		if code, said := run("XDG_RUNTIME_DIR=" + dir); code != 3 || said != "" {
			t.Errorf("%s: exit code %d, %s", dir, code, said)
		}
	}
	if code, said := run("A=b", "--control", "none"); code != 3 || said != "" {
		t.Errorf("none: exit code %d, %s", code, said)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "ktstr-vmm")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(p.dir, "used"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, says := range map[string]string{
		file: "no socket", l.Addr().String(): "another process listens there",
		p.dir + "/none/a.sock":                 "making a socket in " + p.dir + "/none: no such file",
		p.dir + "/" + strings.Repeat("x", 108): "at most 107 bytes", "": "auto, none or the path",
	} {
		code, said := run("A=b", "--control", path)
		if code != 125 || strings.Count(said, "\n") != 1 || !strings.Contains(said, "--control ") ||
			!strings.Contains(said, says) {
			t.Errorf("%q: exit code %d, %s", path, code, said)
		}
	}
}

// What answers may be no run: none of its words are for a terminal to act on.
func TestCtlShowsWhatItIsTold(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	const id = "0123456789abcdef"
	folder := filepath.Join(p.dir, "ktstr-vmm")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(folder, id+".sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadString('\n')
			fmt.Fprintln(conn, strings.ReplaceAll(`{"ktstr_vmm_control":1,"status":{"id":"%","name":"%","version":"%",`+
				`"kernel":"%","arch":"%","accelerator":"%","phase":"%","by_type":{"%":1}},"cpu":{"state":"%","pc":"1","sp":"2",`+
				`"registers":[{"name":"%","value":"3"}]}}`+"\n"+`{"cpu":{"pc":"1","sp":"2","error":"%"}}`, "%", `\u001b[2J\n`)+
				"\n"+`{"end":{}}`)
			_ = conn.Close()
		}
	}()
	ps, err := p.command("ps").Output()
	if err != nil {
		t.Error(err)
	}
	for name, out := range map[string]string{"ps": string(ps), "status": p.does(id, "status"),
		"registers": p.does(id, "registers")} {
		if strings.Contains(out, "\x1b") || !strings.Contains(out, `\x1b[2J\n`) {
			t.Errorf("%s: %q", name, out)
		}
	}
}

// Whatever 500 clients do, at once and again and again, a run goes on, its memory and its files stay what they are, and
// it ends when it is told to.
func TestHostileClients(t *testing.T) {
	accel := testenv.Backend(t).Name()
	p := newPlace(t)
	run, stderr, id := p.start("demo", "--accel", accel, "--scenario", "flood,count=1000000000", "--shm-size", "1M")
	client := control.Client{Path: filepath.Join(p.dir, "ktstr-vmm", id+".sock")}
	before, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	memory, files := ownMemory(t, run.Process.Pid), filesOf(t, run.Process.Pid)

	var all sync.WaitGroup
	over := time.Now().Add(3 * time.Second)
	for i := range 500 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for time.Now().Before(over) {
				hostile(r, client.Path, over)
			}
		})
	}
	all.Wait()
	var after *control.Status
	for limit := time.Now().Add(hangLimit); ; time.Sleep(50 * time.Millisecond) { // those that said nothing have 5 s
		if after, err = client.Status(t.Context()); err == nil {
			break
		}
		if !errors.Is(err, control.ErrBusy) || time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	if after.Messages <= before.Messages || after.CRCErrors+after.Faults+after.Drops > 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if n := filesOf(t, run.Process.Pid); n > files+control.MaxClients {
		t.Errorf("%d files are open, %d were", n, files)
	}
	if kib := ownMemory(t, run.Process.Pid); kib > memory+64<<10 {
		t.Errorf("%d KiB of memory, it had %d", kib, memory)
	} else {
		t.Logf("%d KiB of memory, it had %d", kib, memory)
	}
	p.does("stop", "--now")
	if code := ends(t, run); code != 143 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// hostile is a client that does something with a run's socket that is of no use to it.
func hostile(r *rand.Rand, path string, over time.Time) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return
	}
	conn := c.(*net.UnixConn)
	defer conn.Close()
	_ = conn.SetDeadline(over)
	ask := []string{"", "{", "\n", "\x00\xff\n", strings.Repeat("x", 8000), strings.Repeat("[", 4000) + "\n",
		`{"ktstr_vmm_control":1,"verb":"status"}` + "\n",
		`{"ktstr_vmm_control":1,"verb":"tail","follow":true}` + "\n",
		`{"ktstr_vmm_control":1,"verb":"console","follow":true}` + "\n",
		`{"ktstr_vmm_control":1,"verb":"ring"}` + "\n",
		`{"ktstr_vmm_control":1,"verb":"metrics"}` + "\n"}
	_, _ = io.WriteString(conn, ask[r.IntN(len(ask))])
	switch r.IntN(4) {
	case 0: // dies
	case 1:
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, 100))
	case 2:
		_, _ = io.Copy(io.Discard, conn)
	case 3:
		time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
	}
}

// ownMemory is the resident memory of a process without its guest's, in KiB.
func ownMemory(t *testing.T, pid int) (kib int) {
	t.Helper()
	all, err := smaps.Read(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if !m.Memfd && m.Size() < 256<<20 {
			kib += m.RSS
		}
	}
	return kib
}

func filesOf(t *testing.T, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
