package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// A command's output is passed on as it is, and an ending that is not its own is explained behind it.
func TestCommandView(t *testing.T) {
	booted := []run.PhaseStart{{Phase: run.PhaseBoot}}
	for name, tc := range map[string]struct {
		result         run.Result
		console        bool
		summary, shown bool   // the report, with the console's end
		hint           string // part of what is said beside it
	}{
		"its own ending":  {run.Result{Outcome: run.Exited, ExitCode: 3, Console: []byte("console")}, true, false, false, ""},
		"a reset":         {run.Result{Outcome: run.NoVerdict, Console: []byte("console")}, true, true, true, ""},
		"shown as it was": {run.Result{Outcome: run.NoVerdict, Console: []byte("console")}, false, true, false, ""},
		"no machine":      {run.Result{Outcome: run.TimedOut, Accelerator: "emulator"}, true, true, false, ""},
		"never started": {run.Result{Outcome: run.TimedOut, Phases: booted}, true, true, false,
			"The command had not started;"},
		"too slow": {run.Result{Outcome: run.TimedOut, Phases: booted,
			Ring: monitor.Stats{ByType: map[string]uint64{"SCST": 1}}}, true, true, false, ""},
		"emulated": {run.Result{Outcome: run.TimedOut, Phases: booted, Accelerator: "emulator",
			Ring: monitor.Stats{ByType: map[string]uint64{"SCST": 1}}}, true, true, false, "try more --timeout"},
		"out of memory": {run.Result{Outcome: run.Exited, ExitCode: 137,
			Console: []byte("[ 1.0] Out of memory: Killed process 7 (a)")}, true, false, false, "try more --memory"},
		"killed": {run.Result{Outcome: run.Exited, ExitCode: 137, Console: []byte("quiet")}, true, false, false, ""},
	} {
		var stdout, stderr bytes.Buffer
		v := newCommandView(report.NewStream(&stdout), report.NewStream(&stderr), tc.console, false)
		v.message(0, shm.Message{Type: shm.Stdout, CRCOK: true, Payload: []byte("out\x00")})
		v.message(0, shm.Message{Type: shm.Stderr, CRCOK: true, Payload: []byte("err")})
		v.message(0, shm.Message{Type: shm.Stdout, Payload: []byte("damaged")})
		if lost := v.flush(t.Context()); lost != 0 {
			t.Errorf("%s: %d bytes are lost", name, lost)
		}
		v.summary(&tc.result)
		for _, s := range []*report.Stream{v.stdout, v.stderr} {
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		text, ok := strings.CutPrefix(stderr.String(), "err")
		if stdout.String() != "out\x00" || !ok || strings.Contains(text, "exit code") != tc.summary ||
			strings.Contains(text, "end of the console") != tc.shown ||
			(tc.hint == "" && !tc.summary && text != "") || !strings.Contains(text, tc.hint) ||
			tc.hint == "" && (strings.Contains(text, "The command had not") || strings.Contains(text, "try more")) {
			t.Errorf("%s: stdout %q, stderr %q", name, stdout.String(), stderr.String())
		}
	}
}
