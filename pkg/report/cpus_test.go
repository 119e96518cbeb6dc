package report_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// looked is a result with a look at CPUs that do all that they can.
func looked() *run.Result {
	r := result()
	scx := &introspect.SCX{Flags: 0x11, NrRunning: 2}
	r.Looks = []run.Look{{When: run.AskedToStop, At: 1234567 * time.Microsecond, CPUs: []introspect.CPU{
		{Index: 0, Online: true, NrRunning: 3, Clock: 1500 * time.Millisecond, PID: 57, Comm: nasty, Policy: 7, SCX: scx},
		{Index: 1, Online: true, Idle: true, Comm: "swapper/1"},
		{Index: 2, Online: true, Idle: true, NrRunning: 1, Comm: "swapper/2"},
		{Index: 3, Online: true, Idle: true, Comm: "swapper/3"},
		{Index: 4, Online: true, Idle: true, Comm: "swapper/4"},
		{Index: 5, Idle: true, Comm: "swapper/5"},
	}}}
	return r
}

// The summary has a line for each CPU that does something, and the guest's bytes do nothing to a terminal.
func TestTextShowsCPUs(t *testing.T) {
	var out strings.Builder
	if err := report.Text(&out, looked(), false); err != nil {
		t.Fatal(err)
	}
	const want = `
what each of the guest's CPUs was doing when it was asked to stop, after 1.235s:
  CPU 0   a\x1b[2Jb\x00]]><x>&"` + "\ufffd" + `\u202e, process 57, policy ext; 3 runnable; clock 1.500000 s; ` +
		`sched_ext: 2 runnable, flags 0x11
  CPU 2   idle; 1 runnable; clock 0.000000 s
  idle    CPU 1,3-4
  offline CPU 5
`
	if !strings.Contains(out.String(), want) {
		t.Errorf("%s, want %s", out.String(), want)
	}
	good := looked()
	good.Outcome, good.ExitCode = run.Exited, 0
	out.Reset()
	if err := report.Text(&out, good, false); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "CPU") {
		t.Errorf("a good run's summary: %s", out.String())
	}
}

func TestJSONHasCPUs(t *testing.T) {
	r := looked()
	r.Looks[0].CPUs = r.Looks[0].CPUs[:2]
	r.LookError = errors.New("CPU 2 can't be read")
	var out bytes.Buffer
	if err := report.JSON(&out, "v1", r); err != nil {
		t.Fatal(err)
	}
	var got struct{ CPUs any }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"error": "CPU 2 can't be read",
		"looks": []any{map[string]any{"when": "asked_to_stop", "at_seconds": 1.234567, "cpus": []any{
			map[string]any{"index": 0.0, "online": true, "idle": false, "nr_running": 3.0, "clock_seconds": 1.5,
				"pid": 57.0, "comm": "a\x1b[2Jb\x00]]><x>&\"\ufffd\u202e", "policy": "ext",
				"scx": map[string]any{"flags": "0x11", "nr_running": 2.0}},
			map[string]any{"index": 1.0, "online": true, "idle": true, "nr_running": 0.0, "clock_seconds": 0.0,
				"pid": 0.0, "comm": "swapper/1", "policy": "normal"},
		}}},
	}
	if diff := cmp.Diff(want, got.CPUs); diff != "" {
		t.Error(diff)
	}
}
