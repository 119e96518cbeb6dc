package guest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Scenarios are what the embedded guest can do, and Parameters are what each of them can be told: src/demo.c.
var (
	Scenarios = []string{"ok", "fail", "sched-exit", "crash", "hang", "halt", "graceful", "silent",
		"triple-fault", "flood", "overrun", "stall", "signals", "hostile"}
	Parameters = []string{"count", "size", "steps", "step_ms", "lie", "exit"}
	lies       = []string{"behind", "ahead", "length", "incomplete", "header", "crc", "exit-payload"}
)

// ErrScenario is what names no scenario, or gives it what is no parameter, or no value of one.
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
		if err := checkParameter(key, value); err != nil {
			return "", "", err
		}
		cmdline += " demo." + key + "=" + value
	}
	return cmdline, name, nil
}

// checkParameter refuses what the guest, which has no way to complain, would take for 0 or for nothing.
func checkParameter(key, value string) error {
	if key == "lie" {
		if !slices.Contains(lies, value) {
			return fmt.Errorf("%w: parameter lie=%q, it is one of %s", ErrScenario, value, strings.Join(lies, ", "))
		}
		return nil
	}
	digits, base := value, 10
	if hex, ok := strings.CutPrefix(value, "0x"); ok {
		digits, base = hex, 16
	}
	if _, err := strconv.ParseUint(digits, base, 64); err != nil || strings.ToLower(digits) != digits {
		return fmt.Errorf("%w: parameter %s=%q, it is a number, such as 16 or 0x10, below 2^64", ErrScenario, key, value)
	}
	return nil
}
