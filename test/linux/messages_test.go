//go:build linuxbed

package linux

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/ktstr"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// send sends messages by the package for tests.
func send(what string) error {
	h, err := ktstr.Connect()
	if err != nil {
		return err
	}
	defer h.Close()
	switch what {
	case "crash":
		return h.Crash("the test says so")
	case "scheduler-exit":
		return h.SchedulerExit(-7)
	case "messages":
		return errors.Join(
			h.ScenarioStart(),
			h.Stimulus(ktstr.Stimulus{ElapsedMS: 5, StepIndex: 1, OpCount: 2, TotalIterations: 1 << 40}),
			h.Result(map[string]any{"name": "a", "passed": true}),
			h.Metrics(map[string]int{"latency_us": 12}),
			h.RawOutput([]string{"raw"}),
			h.ScenarioEnd(),
			h.Exit(9),
		)
	}
	return fmt.Errorf("no helper %q", what)
}

// Each type that the package for tests can send is in the report, and the agent's two around them.
func TestMessages(t *testing.T) {
	t.Parallel()
	t.Run("all that end nothing, and EXIT", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", program, "-helper=messages")
		if e.code != 9 || r.Outcome != "exited" || r.GuestExitCode == nil || *r.GuestExitCode != 9 {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
		for _, typ := range []string{"STIM", "SCST", "SCEN", "EXIT", "TEST", "PMET", "RAWO"} {
			if r.Ring.ByType[typ] == 0 {
				t.Errorf("no %s: %v", typ, r.Ring.ByType)
			}
		}
		if r.Ring.ByType["EXIT"] != 1 { // the agent's own would be the last one, which counts
			t.Errorf("%d of EXIT", r.Ring.ByType["EXIT"])
		}
		want := shm.StimulusEvent{ElapsedMS: 5, StepIndex: 1, OpCount: 2, TotalIterations: 1 << 40}
		if len(r.Stimuli) != 1 || r.Stimuli[0] != want || fmt.Sprint(r.Results) != "[map[name:a passed:true]]" {
			t.Errorf("stimuli %v, results %v", r.Stimuli, r.Results)
		}
	})
	t.Run("CRSH", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", program, "-helper=crash")
		if e.code != 122 || r.Outcome != "crash" || r.Crash == nil || r.Crash.Message != "the test says so" {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
	})
	t.Run("SCDX", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", program, "-helper=scheduler-exit")
		if e.code != 121 || r.SchedulerExit == nil || *r.SchedulerExit.Code != -7 {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
	})
	t.Run("a shell's lines", func(t *testing.T) {
		t.Parallel()
		e, r := reported(t, "--", "busybox", "sh", "-c", `
			echo 'TEST {"name":"b","passed":false}' > $KTSTR_MESSAGES
			echo 'STIM {"step_index":3}' > $KTSTR_MESSAGES
			busybox printf 'PMET {}\nRAWO []\nTSET {}\n' > $KTSTR_MESSAGES
			exit 4`)
		if e.code != 4 || !strings.Contains(string(e.stderr), `"TSET" is none of TEST, PMET, RAWO, STIM`) ||
			len(r.Stimuli) != 1 || r.Stimuli[0].StepIndex != 3 || fmt.Sprint(r.Results) != "[map[name:b passed:false]]" ||
			r.Ring.ByType["PMET"] != 1 || r.Ring.ByType["RAWO"] != 1 {
			t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
		}
	})
}

// The example of a test that reports, as the README shows it.
func TestExample(t *testing.T) {
	t.Parallel()
	e, r := reported(t, "--", os.Getenv("KTSTR_TEST_EXAMPLE"), "-test.v")
	if e.code != 0 || !strings.Contains(string(e.stdout), "--- PASS: TestLatency") || len(r.Results) != 1 ||
		r.Ring.ByType["PMET"] != 1 {
		t.Errorf("exit code %d, %s%s\n%+v", e.code, e.stdout, e.stderr, r)
	}
}
