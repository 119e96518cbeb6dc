package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// A command's output is passed on as it is, and an ending that is not its own is explained behind it.
func TestCommandView(t *testing.T) {
	const hint = "The command had not started."
	for name, tc := range map[string]struct {
		result          run.Result
		console         bool
		summary, hinted bool
		shown           bool // the console's end
	}{
		"its own ending":  {run.Result{Outcome: run.Exited, ExitCode: 3, Console: []byte("console")}, true, false, false, false},
		"a reset":         {run.Result{Outcome: run.NoVerdict, Console: []byte("console")}, true, true, false, true},
		"shown as it was": {run.Result{Outcome: run.NoVerdict, Console: []byte("console")}, false, true, false, false},
		"never started":   {run.Result{Outcome: run.TimedOut}, true, true, true, false},
		"too slow":        {run.Result{Outcome: run.TimedOut, Ring: monitor.Stats{ByType: map[string]uint64{"SCST": 1}}}, true, true, false, false},
	} {
		var stdout, stderr bytes.Buffer
		v := newCommandView(&stdout, &stderr, tc.console)
		v.message(0, shm.Message{Type: shm.Stdout, CRCOK: true, Payload: []byte("out\x00")})
		v.message(0, shm.Message{Type: shm.Stderr, CRCOK: true, Payload: []byte("err")})
		v.message(0, shm.Message{Type: shm.Stdout, Payload: []byte("damaged")})
		if err := v.finish(&tc.result); err != nil {
			t.Fatal(err)
		}
		text, ok := strings.CutPrefix(stderr.String(), "err")
		if stdout.String() != "out\x00" || !ok || (text != "") != tc.summary || strings.Contains(text, hint) != tc.hinted || strings.Contains(text, "console") != tc.shown {
			t.Errorf("%s: stdout %q, stderr %q", name, stdout.String(), stderr.String())
		}
	}
}
