package suite_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// opened reads a suite's file with this text.
func opened(t *testing.T, text string, environ ...string) (*suite.Suite, string, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "suite.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := suite.Open(name, environ)
	return s, name, err
}

// commands are the runs' command lines by name, in their order.
func commands(s *suite.Suite) (all []string) {
	for _, x := range s.Runs {
		all = append(all, x.Name+": "+strings.Join(x.Args(), " "))
	}
	return all
}

// A matrix makes a run for each combination; a run's own settings go before defaults, of which each command takes its
// own, and the environment adds what neither says.
func TestRuns(t *testing.T) {
	s, _, err := opened(t, `
name: nightly
defaults: {memory: 64M, timeout: 9s, kernel: vmlinuz, env: [A=1, B=2], arch: arm64}
runs:
- scenario: ok
- name: m
  scenario: flood
  timeout: 1s
  matrix: {cpus: [1, 2], memory: [96M, 128M]}
- command: [uname, -a]
  env: [C=3]
- name: c
  matrix:
    command: [[sh, -c, exit], "true"]
`, "KTSTR_VMM_GRACE=1s", "KTSTR_VMM_MEMORY=512M")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ok: demo --scenario=ok --arch=arm64 --memory=64M --timeout=9s",
		"m[cpus=1,memory=96M]: demo --scenario=flood --arch=arm64 --memory=96M --cpus=1 --timeout=1s",
		"m[cpus=1,memory=128M]: demo --scenario=flood --arch=arm64 --memory=128M --cpus=1 --timeout=1s",
		"m[cpus=2,memory=96M]: demo --scenario=flood --arch=arm64 --memory=96M --cpus=2 --timeout=1s",
		"m[cpus=2,memory=128M]: demo --scenario=flood --arch=arm64 --memory=128M --cpus=2 --timeout=1s",
		"uname -a: run --kernel=vmlinuz --env=C=3 --memory=64M --timeout=9s -- uname -a",
		"c[command=sh -c exit]: run --kernel=vmlinuz --env=A=1 --env=B=2 --memory=64M --timeout=9s -- sh -c exit",
		"c[command=true]: run --kernel=vmlinuz --env=A=1 --env=B=2 --memory=64M --timeout=9s -- true",
	}
	if diff := cmp.Diff(want, commands(s)); diff != "" {
		t.Error(diff)
	}
	if x := s.Runs[3]; s.Name != "nightly" || x.CPUs != 2 || x.Memory != 96<<20 || x.Grace != time.Second ||
		x.Timeout != time.Second {
		t.Errorf("%q, %+v", s.Name, x)
	}
}

func TestExpectations(t *testing.T) {
	s, _, err := opened(t, `
name: s
runs:
- {name: a, scenario: ok, labels: [x, y]}
- {name: b, scenario: hang, expect: {outcome: timeout}}
- {name: c, scenario: fail, expect: {exit-code: 3}}
`)
	if err != nil {
		t.Fatal(err)
	}
	zero, three := 0, 3
	want := []suite.Expect{{Outcome: run.Exited, ExitCode: &zero}, {Outcome: run.TimedOut},
		{Outcome: run.Exited, ExitCode: &three}}
	for i, x := range s.Runs {
		if diff := cmp.Diff(want[i], x.Expect); diff != "" {
			t.Errorf("%s: %s", x.Name, diff)
		}
	}
	if diff := cmp.Diff([]string{"x", "y"}, s.Runs[0].Labels); diff != "" {
		t.Error(diff)
	}
}

// What is wrong is one line that says where, and what would be right.
func TestBadFiles(t *testing.T) {
	const head = "name: s\nruns:\n"
	for _, c := range []struct{ text, want string }{
		{"", " is empty; it has name and runs"},
		{"runs: [{scenario: ok}]", ":1: name is missing"},
		{"name: s", ":1: runs is missing: a list of what to run"},
		{"name: s\nruns: {scenario: ok}", ":2: runs is missing: a list of what to run"},
		{"name: s\nruns: []", ":2: runs is missing"},
		{"name: ''\nruns: []", `:1: name "": it is one line of text`},
		{"name: s\nrun: []", `:2: "run" is no key here; did you mean runs?`},
		{"name: s\ndefaults: [a]", ":2: defaults: keys and values are expected"},
		{"name: s\ndefaults: {memroy: 64M}", `:2: "memroy" is no key here; did you mean memory?`},
		{"name: s\ndefaults: {memory: 12Q}\n" + head[8:] + "- {scenario: ok}", `:2: memory "12Q": a size is`},
		{head + "- ok", ":3: a run is keys and values"},
		{head + "- {scenario: ok, lables: [a]}", `:3: "lables" is no key here; did you mean labels?`},
		{head + "- scenario: ok\n  cpu: 2", `:4: "cpu" is no key here; did you mean cpus?`},
		{head + "- scenario: dance", `:3: scenario dance: no such scenario: "dance"`},
		{head + "- scenario: ok\n  report: r.json", ":4: report is the suite's to set, for each run"},
		{head + "- scenario: ok\n  expect: timeout", ":4: expect: keys and values are expected"},
		{head + "- scenario: ok\n  expect: {outcome: late}", `:4: outcome "late": it is one of [exited`},
		{head + "- scenario: ok\n  expect: {exit-code: 256}", `:4: exit-code "256": it is a number from 0 to 255`},
		{head + "- scenario: ok\n  expect: {exit-code: 3abc}", `:4: exit-code "3abc": it is a number from 0 to 255`},
		{head + "- scenario: ok\n  expect: {exit-code: 0x10}", `:4: exit-code "0x10": it is a number from 0 to 255`},
		{head + "- scenario: ok\n  expect: {exit-code: -1}", `:4: exit-code "-1": it is a number from 0 to 255`},
		{head + "- scenario: ok\n  expect: {exitcode: 1}", `:4: "exitcode" is no key here; did you mean exit-code?`},
		{head + "- scenario: ok\n  matrix: [1]", ":4: matrix: keys with lists of values are expected"},
		{head + "- scenario: ok\n  matrix: {cpus: 2}", ":4: matrix: cpus: a list of values is expected"},
		{head + "- scenario: ok\n  matrix: {cpus: []}", ":4: matrix: cpus: a list of values is expected"},
		{head + "- scenario: ok\n  matrix: {cpus: [1, 99]}", ":4: cpus 99: 99 processors, it can be 1 to 32"},
		{head + "- scenario: ok\n  matrix: {cpsu: [1]}", `:4: "cpsu" is no key here; did you mean cpus?`},
		{head + "- scenario: ok\n- scenario: ok", `:4: there is a run with the name "ok" already`},
		{head + "- kernel: vmlinuz", ":3: a run has a scenario, or a kernel and a command"},
		{head + "- command: [uname]", ":3: a run has a scenario, or a kernel and a command"},
		{head + "- {scenario: ok, kernel: vmlinuz}", ":3: kernel is a setting of run, not of demo"},
		{head + "- {name: [a], scenario: ok}", `:3: name "a": it is one line of text`},
		{head + "- {name: \"a\\nb\", scenario: ok}", `: it is one line of text`},
		{head + "- {scenario: ok, labels: {a: b}}", ":3: a mapping, where a value or a list"},
		{head + "- {scenario: ok, cpus: 4, numa: 2}", ":3: numa 2: bad topology"},
		{head + "- {scenario: ok, scenario: fail}", ":3: scenario is there already"},
		{head + "- {scenario: ok, matrix: {timeout: " + many + ", grace: " + many + "}}", ":3: a suite has at most 10000"},
	} {
		_, name, err := opened(t, c.text)
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200q: %v, want %s", c.text, err, c.want)
		}
	}
}

// many are a hundred and one durations.
var many = func() string {
	all := make([]string, 101)
	for i := range all {
		all[i] = fmt.Sprintf("%ds", i+1)
	}
	return "[" + strings.Join(all, ", ") + "]"
}()
