package agent

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// FuzzStimulus holds the agent's reader of a STIM line against encoding/json.
func FuzzStimulus(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"step_index":7}`, ` { "elapsed_ms" : 4294967295 ,` + "\t" + `"op_count":65535, "op_kinds":0 } `,
		`{"cgroup_count":1,"worker_count":2,"total_iterations":18446744073709551615}`, `{"STEP_Index":1}`,
		`{"step_index":1,"step_index":2}`,
		`{"step_index":null}`, `{"step_index":1} and more`, `{"step_index":65536}`, `{"step_index":-1}`,
		`{"step_index":01}`, `{"step_index":1.0}`,
		`{"step_index":"1"}`, `{"step_index":}`, `{"step_index"}`, `{"step_index":1,}`, `{,}`, `{"steps":1}`,
		`{step_index:1}`, `{"step_index":1`,
		`null`, `[]`, `7`, ``, `{"step_index":{"op_count":1}}`, `{"a}":1}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var want shm.StimulusEvent
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		jsonErr := dec.Decode(&want)
		got, err := parseStimulus(text)
		switch {
		case err == nil && (jsonErr != nil || got != want):
			t.Errorf("%q is %+v; encoding/json: %+v, %v", text, got, want, jsonErr)
		case err != nil && jsonErr == nil && strings.HasPrefix(strings.TrimSpace(text), "{") && !strings.Contains(text, `\`):
			t.Errorf("%q: %v; encoding/json: %+v", text, err, want)
		}
	})
}
