package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/config"
)

// badConfigs are config files that are refused: for which command, the text, and what the error says behind the file's
// name, which has its line, the key, and what would be right.
var badConfigs = []struct{ command, text, want string }{
	{"demo", "memmory: 64M", `:1: "memmory" is no setting; did you mean memory?`},
	{"demo", "# a comment\n\nshm_size: 1M", `:3: "shm_size" is no setting; did you mean shm-size?`},
	{"demo", "Memory: 64M", `:1: "Memory" is no setting; did you mean memory?`},
	{"demo", "timeuot: 1s", `:1: "timeuot" is no setting; did you mean timeout?`},
	{"demo", "cpu: 2", `:1: "cpu" is no setting; did you mean cpus?`},
	{"demo", "acel: kvm", `:1: "acel" is no setting; did you mean accel?`},
	{"demo", "report_format: json", `:1: "report_format" is no setting; did you mean report-format?`},
	{"demo", "metrics-listn: 127.0.0.1:0", `:1: "metrics-listn" is no setting; did you mean metrics-listen?`},
	{"demo", "senario: ok", `:1: "senario" is no setting; did you mean scenario?`},
	{"demo", "wholly-different-thing: 1", `:1: "wholly-different-thing" is no setting`},
	{"demo", "kernel: vmlinuz", `:1: kernel is a setting of run, not of demo`},
	{"demo", "command: [uname]", `:1: command is a setting of run, not of demo`},
	{"run", "scenario: ok", `:1: scenario is a setting of demo, not of run`},
	{"run", "kernle: vmlinuz", `:1: "kernle" is no setting; did you mean kernel?`},
	{"run", "modules: [kvm]", `:1: "modules" is no setting; did you mean module?`},
	{"run", "scheduler_wait: 1s", `:1: "scheduler_wait" is no setting; did you mean scheduler-wait?`},
	{"demo", "cpus: 1\nmemory: 12Q", `:2: memory "12Q": a size is a number of bytes, or one with K, M or G: 512M`},
	{"demo", "memory: 64.5M", `:1: memory "64.5M": a size is a number of bytes, or one with K, M or G: 512M`},
	{"demo", "memory: -1", `:1: memory "-1": a size is`},
	{"demo", "memory: 99999999999G", `:1: memory "99999999999G": a size is less than 2^64 bytes`},
	{"demo", "memory: 0", `:1: memory 0, --shm-size 16M: neither can be 0`},
	{"demo", "memory: true", `:1: memory "true": a size is`},
	{"demo", "memory: ''", `:1: memory "": a size is`},
	{"demo", "memory:", `:1: nothing, where a value or a list of values is expected`},
	{"demo", "memory: ~", `:1: nothing, where a value`},
	{"demo", "memory: [64M]", `:1: memory: a list, where one value is expected`},
	{"demo", "memory:\n  size: 64M", `:2: a mapping, where a value or a list of values is expected`},
	{"demo", "timeout: 60", `:1: timeout "60": a duration is a number with a unit: 90s`},
	{"demo", "timeout: soon", `:1: timeout "soon": a duration is a number with a unit`},
	{"demo", "timeout: -1s", `:1: timeout -1s: it can be 1ms to 8760h0m0s`},
	{"demo", "grace: 9000h", `:1: grace 9000h0m0s: it can be 0s to 8760h0m0s`},
	{"demo", "poll: 2s", `:1: poll 2s: it can be 100µs to 1s`},
	{"demo", "poll: 1us", `:1: poll 1µs: it can be 100µs to 1s`},
	{"demo", "metrics-linger: -1s", `:1: metrics-linger -1s: it can be 0s to`},
	{"demo", "accel: qemu", `:1: accel "qemu": it is one of auto, kvm, emulator`},
	{"demo", "accel: KVM", `:1: accel "KVM": it is one of auto, kvm, emulator`},
	{"demo", "report-format: yaml", `:1: report-format "yaml": it is one of text, json, junit`},
	{"demo", "log-level: loud", `:1: log-level "loud": it is one of debug, info, warn, error`},
	{"demo", "log-format: xml", `:1: log-format "xml": it is one of console, json`},
	{"demo", "arch: z80", `:1: arch "z80": it is one of x86_64, arm64`},
	{"demo", "scenario: dance", `:1: scenario dance: no such scenario: "dance", it is one of ok, fail`},
	{"demo", "scenario: flood,speed=1", `:1: scenario flood,speed=1: no such scenario: parameter "speed", it is one of`},
	{"demo", "scenario: ok,steps=x", `:1: scenario ok,steps=x: no such scenario: parameter steps="x", it is a number`},
	{"demo", "scenario: flood,count=1e6", `: no such scenario: parameter count="1e6", it is a number, such as 16 or 0x10`},
	{"demo", "scenario: flood,count", `: no such scenario: parameter count="", it is a number`},
	{"demo", "scenario: flood,count=0xFF", `: no such scenario: parameter count="0xFF", it is a number`},
	{"demo", "scenario: hostile,lie=white", `: no such scenario: parameter lie="white", it is one of behind, ahead, `},
	{"demo", "cpus: 33", `:1: cpus 33: 33 processors, it can be 1 to 32`},
	{"demo", "cpus: 0", `:1: cpus 0: bad topology: processors "0", it has to be a number from 1 on`},
	{"demo", "cpus: sockets=2,nodes=2", `:1: cpus sockets=2,nodes=2: bad topology: "nodes=2"`},
	{"demo", "cpus: [1, 2]", `:1: cpus: a list, where one value is expected`},
	{"demo", "cpus: 4\nllc: cores=3", `:2: llc cores=3: bad topology: 3 cores share a last-level cache`},
	{"demo", "cpus: 4\nnuma: 2", `:2: numa 2: bad topology: 2 NUMA nodes of`},
	{"demo", "cpus: sockets=2\nnuma: 2,distance=9", `:2: numa 2,distance=9: bad topology: distance "9", it can be 10`},
	{"demo", "pin: 0-x", `:1: pin 0-x: it is a list of CPUs, such as 0-3,8: "0-x"`},
	{"run", "scheduler: ''", `:1: scheduler "": it is a program and its arguments`},
	{"run", "scheduler-wait: 0s", `:1: scheduler-wait 0s: it can be 1ms to 24h0m0s`},
	{"run", "dump-on: noon", `:1: dump-on noon: "noon": it is one or more of timeout, stall, or none`},
	{"run", "dump-on: [timeout, noon]", `:1: dump-on timeout,noon: "noon": it is one or more of`},
	{"run", "dump-on: stall", `:1: dump-on stall: --stall-polls or --stall-rate says what a stall is`},
	{"run", "stall-polls: 1.5", `:1: stall-polls "1.5": it is a number`},
	{"run", "dump-on: stall\nstall-polls: -1", `:2: stall-polls -1: it can be 0 or more`},
	{"run", "dump-on: stall\nstall-rate: .nan", `:2: stall-rate ".nan": it is a number`},
	{"run", "shm-reserve: perhaps", `:1: shm-reserve "perhaps": it is one of no-map, cacheable`},
	{"run", "tty: perhaps", `:1: tty "perhaps": it is true or false`},
	{"run", "console-limit: many", `:1: console-limit "many": a size is`},
	{"run", "env:\n  A: b", `:2: a mapping, where a value or a list of values is expected`},
	{"run", "include:\n- a\n- [b]", `:3: a list, where a value is expected`},
	{"run", "command: {sh: -c}", `:1: a mapping, where a value or a list`},
	{"demo", "memory: 64M\nmemory: 128M", `:2: memory is there already, in line 1`},
	{"demo", "a: &x 64M\nmemory: *x", `:1: anchors and aliases are not taken; write the value where it belongs`},
	{"demo", "- memory: 64M", `:1: a list, where keys and values are expected, as in memory: 512M`},
	{"demo", "memory", `:1: "memory", where keys and values are expected`},
	{"demo", "memory: 64M\n---\ncpus: 2", `:2: a second document: a file has one`},
	{"demo", "memory: [64M", `:1: no YAML: `},
	{"demo", "memory: 64M\n  cpus: 2", `:2: no YAML: `},
	{"demo", "\tmemory: 64M", `:1: no YAML: `},
	{"demo", "memory: \"64M", `no YAML: `},
	{"demo", "? [memory]\n: 64M", `:1: a list, where a key is expected`},
	{"demo", "memory: \xff", ` is not in UTF-8`},
	{"demo", "report: " + strings.Repeat("x", 1<<20), ` has more than 1048576 bytes`},
	{"demo", "memory: \"\\e[31m\"", `:1: memory "\x1b[31m": a size is`},
}

// A config file that is no good is one line that says where and why, and 125; nothing is started.
func TestBadConfigs(t *testing.T) {
	for i, c := range badConfigs {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file, report := filepath.Join(dir, "run.yaml"), filepath.Join(dir, "report.json")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{c.command, "--config", file, "--report", report}
			if c.command == "run" {
				args = append(args, "--kernel", os.DevNull)
			}
			if strings.HasPrefix(c.text, "report:") {
				args = args[:3]
			}
			var stdout, stderr bytes.Buffer
			code := execute(args, &stdout, &stderr)
			oneLineOf(t, stderr.Bytes())
			text, ok := strings.CutPrefix(stderr.String(), "ktstr-vmm: ")
			if _, rest, named := strings.Cut(text, file); code != 125 || !ok || !named || !strings.Contains(rest, c.want) {
				t.Errorf("%q: exit code %d, %q, want %q", c.text, code, stderr.String(), c.want)
			}
			if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 || stdout.Len() > 0 {
				t.Errorf("it left %q, and wrote %q", left, stdout.String())
			}
		})
	}
}

// A pipe that nobody writes to holds nothing up for ever.
func TestConfigWithoutWriter(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	start := time.Now()
	code := execute([]string{"demo", "--config", pipe}, &stdout, &stderr)
	took, want := time.Since(start), pipe+" was not read within 5s"
	if code != 125 || took > hangLimit || !strings.Contains(stderr.String(), want) {
		t.Errorf("exit code %d after %v: %s", code, took, stderr.String())
	}
	if w, err := os.OpenFile(pipe, os.O_WRONLY, 0); err == nil { // who waits for it, waits no more
		_ = w.Close()
	}
}

// Every setting that is a flag is explained in the README, by its name.
func TestReadmeHasFlags(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []config.Command{config.Run, config.Demo} {
		for _, x := range config.New(c).All() {
			if !x.NoFlag && !bytes.Contains(readme, []byte("--"+x.Name)) {
				t.Errorf("--%s is not explained", x.Name)
			}
		}
	}
}

// Reports are as their schema says, however a run ended; and the configs that are shipped are taken.
func TestReportsMatchTheirSchema(t *testing.T) {
	t.Parallel()
	configs := filepath.Join("..", "..", "configs")
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(configs, "schema", "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		for scenario, code := range map[string]int{"ok": 0, "fail": 3, "crash": 122, "sched-exit": 121, "silent": 120,
			"hostile,lie=length": 123, "hang": 124} {
			timeout := "60s"
			if scenario == "hang" {
				timeout = "3s"
			}
			var report, stderr bytes.Buffer
			got := execute([]string{"demo", "--config", filepath.Join(configs, "demo.yaml"), "--arch", m.Arch, "--accel",
				m.Backend.Name(), "--scenario", scenario, "--timeout", timeout, "--grace", "0", "--report", "-",
				"--report-format", "json"}, &report, &stderr)
			if got != code {
				t.Errorf("%s: exit code %d, want %d: %s", scenario, got, code, stderr.String())
			}
			v, err := jsonschema.UnmarshalJSON(&report)
			if err == nil {
				err = schema.Validate(v)
			}
			if err != nil {
				t.Errorf("%s: %v", scenario, err)
			}
		}
	})
}
