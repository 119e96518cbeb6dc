package guest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Scenarios are what the embedded guest can do, and Parameters are what each of them can be told: src/demo.c.
var (
	Scenarios = []string{"ok", "fail", "sched-exit", "crash", "hang", "halt", "graceful", "silent",
		"triple-fault", "flood", "overrun", "stall", "signals", "hostile"}
	Parameters = []string{"count", "size", "steps", "step_ms", "lie", "exit"}
)

// ErrScenario is what names no scenario, or gives it what is no parameter.
var ErrScenario = errors.New("no such scenario")

// ParseScenario returns the command line that makes the embedded guest do what NAME[,PARAM=VALUE…] says, and the name.
// It fails with ErrScenario.
func ParseScenario(text string) (cmdline, name string, err error) {
	name, rest, more := strings.Cut(text, ",")
	if !slices.Contains(Scenarios, name) {
		return "", "", fmt.Errorf("%w: %q, it is one of %s", ErrScenario, name, strings.Join(Scenarios, ", "))
	}
	cmdline = "demo.scenario=" + name
	for more {
		var param string
		param, rest, more = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(param, "=")
		if !slices.Contains(Parameters, key) {
			return "", "", fmt.Errorf("%w: parameter %q, it is one of %s", ErrScenario, key,
				strings.Join(Parameters, ", "))
		}
		if value == "" || strings.Trim(value, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || len(value) > 32 {
			return "", "", fmt.Errorf("%w: parameter %s=%q, a value is up to 32 small letters, digits and dashes",
				ErrScenario, key, value)
		}
		cmdline += " demo." + key + "=" + value
	}
	return cmdline, name, nil
}
