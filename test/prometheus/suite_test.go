package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// endings are the runs of a suite that are not like the 50 others, and how they have to end.
var endings = map[string]string{
	"flood":                   "{outcome: exited}",
	"overrun":                 "{outcome: exited}",
	"hostile,lie=crc,exit=0":  "{outcome: exited}",
	"hostile,lie=length":      "{outcome: corrupt}",
	"fail":                    "{exit-code: 3}",
	"crash":                   "{outcome: crash}",
	"hang":                    "{outcome: timeout}",
	"overrun,count=300000":    "{outcome: exited}",
	"ok,steps=20,step_ms=100": "{outcome: exited}",
}

// suite does the runs of a suite, two at a time, and returns their reports.
func (l *lab) suite(name string, args ...string) (reports []report) {
	l.t.Helper()
	var file strings.Builder
	file.WriteString("name: nightly\ndefaults: {memory: 32M, shm-size: 64K}\nruns:\n")
	for scenario, expected := range endings {
		timeout := "60s"
		if scenario == "hang" {
			timeout = "3s"
		}
		fmt.Fprintf(&file, "  - {scenario: %q, expect: %s, timeout: %s}\n", scenario, expected, timeout)
	}
	for i := range 50 {
		fmt.Fprintf(&file, "  - {name: \"run %d\", scenario: ok}\n", i)
	}
	l.write(filepath.Join(l.dir, "nightly.yaml"), file.String())
	p := l.start(l.program, append([]string{"suite", "nightly.yaml", "--jobs", "2", "--results", name, "--metrics-push",
		"http://" + l.at("9091"), "--metrics-textfile", filepath.Join("textfiles", "ktstr-vmm.prom")}, args...)...)
	if <-p.done; p.cmd.ProcessState.ExitCode() != 0 { // its runs have deadlines
		l.t.Fatal(p.said())
	}
	files, err := filepath.Glob(filepath.Join(l.dir, name, "runs", "*", "report.json"))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, path := range files {
		var r report
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &r)
		}
		if err != nil {
			l.t.Fatalf("%s: %v", path, err)
		}
		reports = append(reports, r)
	}
	return reports
}

// A suite reports by all three ways, and by each of them Prometheus has the sums of its runs' reports. The next one
// of the same name is added to two of them, and replaces what was pushed.
func TestSuite(t *testing.T) {
	l := newLab(t)
	l.exporter()
	l.nodeExporter()
	l.pushgateway()
	prom := l.prometheus(l.configure())
	first := l.suite("first")
	if len(first) != 50+len(endings) {
		t.Fatalf("%d reports", len(first))
	}
	checkSums(t, sum(first))
	for _, job := range []string{byExporter, byTextfile, byPush} {
		l.final(prom, job, sum(first))
	}
	l.rises(prom, sum(first))
	second := l.suite("second", "--filter", "run [0-9]$|flood")
	if len(second) != 11 {
		t.Fatalf("%d reports", len(second))
	}
	l.final(prom, byPush, sum(second))
	both := sum(append(first, second...))
	l.final(prom, byTextfile, both)
	l.final(prom, byExporter, both)
	l.rises(prom, both)
}
