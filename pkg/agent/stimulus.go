package agent

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// parseStimulus reads a JSON object with the fields of an event, all of them unsigned numbers; one
// that is missing or null is 0. Escapes in a field's name apart, it takes the objects that
// encoding/json takes, and that package would make the agent larger by a sixth.
func parseStimulus(text string) (s shm.StimulusEvent, err error) {
	const blank = " \t\r\n"
	inside, isObject := strings.CutPrefix(strings.Trim(text, blank), "{")
	inside, _, ends := strings.Cut(inside, "}")
	if !isObject || !ends {
		return s, fmt.Errorf("%.100q is no object", text)
	}
	if inside = strings.Trim(inside, blank); inside == "" {
		return s, nil
	}
	for field := range strings.SplitSeq(inside, ",") {
		name, value, _ := strings.Cut(field, ":")
		if err := setField(&s, strings.Trim(name, blank), strings.Trim(value, blank)); err != nil {
			return s, err
		}
	}
	return s, nil
}

// setField sets the field of a name in quotes.
func setField(s *shm.StimulusEvent, name, value string) error {
	for _, f := range []struct {
		name string
		bits int
		set  func(uint64)
	}{
		{`"elapsed_ms"`, 32, func(v uint64) { s.ElapsedMS = uint32(v) }},
		{`"step_index"`, 16, func(v uint64) { s.StepIndex = uint16(v) }},
		{`"op_count"`, 16, func(v uint64) { s.OpCount = uint16(v) }},
		{`"op_kinds"`, 32, func(v uint64) { s.OpKinds = uint32(v) }},
		{`"cgroup_count"`, 16, func(v uint64) { s.CgroupCount = uint16(v) }},
		{`"worker_count"`, 16, func(v uint64) { s.WorkerCount = uint16(v) }},
		{`"total_iterations"`, 64, func(v uint64) { s.TotalIterations = v }},
	} {
		if !strings.EqualFold(name, f.name) {
			continue
		}
		if value == "null" {
			return nil
		}
		v, err := strconv.ParseUint(value, 10, f.bits)
		if err != nil || len(value) > 1 && value[0] == '0' {
			return fmt.Errorf("%s takes a number of %d bits, not %.100q", f.name, f.bits, value)
		}
		f.set(v)
		return nil
	}
	return fmt.Errorf("there is no field %.100s", name)
}
