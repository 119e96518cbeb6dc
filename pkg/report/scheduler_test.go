package report_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// scheduled is a run whose scheduler was thrown out.
func scheduled() *run.Result {
	r := result()
	r.Crash, r.Outcome = nil, run.SchedulerGone
	r.Scheduler = &run.Scheduler{
		States: []run.SchedulerState{
			{At: time.Second, SchedulerState: shm.SchedulerState{Time: 500 * time.Millisecond, Phase: shm.SchedulerEnabled,
				EnableSeq: 1, HotplugSeq: 2, Rejected: 3, SwitchAll: true, PID: 56, Ops: "fifo"}},
			{At: 2 * time.Second, SchedulerState: shm.SchedulerState{Time: 1500 * time.Millisecond,
				Noticed: 1490 * time.Millisecond, Phase: shm.SchedulerLost, Reason: nasty}},
		},
		Output:  []byte("fifo: enabled\n" + nasty + "\n"),
		Dump:    []byte(strings.Repeat("line "+nasty+"\n", 50)),
		Omitted: run.SchedulerOmitted{States: 1, OutputBytes: 2, DumpBytes: 3},
	}
	r.DumpRequests = []run.DumpRequest{{At: 1500 * time.Millisecond, Why: "no STIM came in 5 polls"}}
	return r
}

func TestSchedulerInJSON(t *testing.T) {
	var out bytes.Buffer
	if err := report.JSON(&out, "v1", scheduled()); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	clean := strings.ToValidUTF8(nasty, "\ufffd")
	want := map[string]any{
		"states": []any{
			map[string]any{"at_seconds": 1.0, "guest_seconds": 0.5, "state": "enabled", "ops": "fifo", "reason": "", "pid": 56.0,
				"enable_seq": 1.0, "hotplug_seq": 2.0, "nr_rejected": 3.0, "switch_all": true},
			map[string]any{"at_seconds": 2.0, "guest_seconds": 1.5, "kernel_seconds": 1.49, "state": "lost", "ops": "",
				"reason": clean, "pid": 0.0, "enable_seq": 0.0, "hotplug_seq": 0.0, "nr_rejected": 0.0, "switch_all": false},
		},
		"output_tail": "fifo: enabled\n" + clean + "\n",
		"dump":        strings.Repeat("line "+clean+"\n", 50),
		"omitted":     map[string]any{"states": 1.0, "output_bytes": 2.0, "dump_bytes": 3.0},
	}
	if diff := cmp.Diff(want, got["scheduler"]); diff != "" {
		t.Error(diff)
	}
	requests := []any{map[string]any{"at_seconds": 1.5, "why": "no STIM came in 5 polls"}}
	if diff := cmp.Diff(requests, got["dump_requests"]); diff != "" {
		t.Error(diff)
	}
}

// A summary says what there is to know, in a terminal's lines; one of a good run says less.
func TestSchedulerInText(t *testing.T) {
	var out bytes.Buffer
	if err := report.Text(&out, scheduled(), false); err != nil {
		t.Fatal(err)
	}
	shown := report.Printable(nasty)
	for _, want := range []string{
		"  dump        asked for after 1.5s: no STIM came in 5 polls\n",
		"  scheduler       1.000s  enabled \"fifo\"\n" + "                  2.000s  lost: " + shown + "\n",
		"\nend of the scheduler's output:\n  fifo: enabled\n  " + shown + "\n",
		"\nsched_ext's dump:\n  line " + shown + "\n",
		"  … and 10 lines more, in the JSON report\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s\nhas no %q", out.String(), want)
		}
	}
	r := scheduled()
	r.Outcome, r.ExitCode = run.Exited, 0
	out.Reset()
	if err := report.Text(&out, r, false); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "dump:\n") || !strings.Contains(out.String(), "lost: ") {
		t.Errorf("%s", out.String())
	}
}

func TestSchedulerInJUnit(t *testing.T) {
	var out bytes.Buffer
	if err := report.JUnit(&out, scheduled()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"<system-err>1s enabled &#34;fifo&#34;", "output:&#xA;fifo: enabled", "dump:&#xA;line a",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s\nhas no %q", out.String(), want)
		}
	}
}

func TestDescribeScheduler(t *testing.T) {
	state := shm.SchedulerState{Phase: shm.SchedulerLost, Ops: "fifo", Reason: "gone\x1b"}
	for _, tc := range []struct {
		m    shm.Message
		want string
	}{
		{shm.Message{Type: shm.SchedulerChange, Payload: state.Encode()}, `lost "fifo": gone\x1b`},
		{shm.Message{Type: shm.SchedulerDump, Payload: shm.DumpPiece{Number: 2, Text: []byte("a\nb")}.Encode()},
			`dump 2: a\nb`},
		{shm.Message{Type: shm.SchedulerOutput, Payload: shm.OutputPiece{Stream: 1, Text: []byte("x")}.Encode()}, "x"},
		{shm.Message{Type: shm.SchedulerOutput, Payload: []byte{9}}, "1 bytes: 09"},
	} {
		if got := report.Describe(tc.m); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}
