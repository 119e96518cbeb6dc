//go:build linuxbed

package linux

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clock is what a helper finds out about its guest's clock.
type clock struct {
	Source         string        // the kernel's clock source
	Step           time.Duration // what all differences between readings are multiples of
	HighResolution bool          // timers are not bound to ticks
	Slept          time.Duration // what a sleep of 500 ms took
}

func reportClock() error {
	var c clock
	source, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return err
	}
	c.Source = strings.TrimSpace(string(source))
	if c.Step, err = step(); err != nil {
		return err
	}
	timers, err := os.ReadFile("/proc/timer_list")
	if err != nil {
		return err
	}
	c.HighResolution = strings.Contains(string(timers), ".hres_active    : 1")
	before := time.Now()
	time.Sleep(500 * time.Millisecond)
	c.Slept = time.Since(before)
	return json.NewEncoder(os.Stdout).Encode(c)
}

// step is the greatest common divisor of many readings' differences: a clock that moves with the ticks has
// some milliseconds of it, however fast it can be read.
func step() (time.Duration, error) {
	var divisor, last int64
	for range 20_000 {
		var t unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
			return 0, err
		}
		for a := t.Nano() - last; a != 0; {
			divisor, a = a, divisor%a
		}
		last = t.Nano()
	}
	return time.Duration(divisor), nil
}

// Whatever runs the guest and however many processors it has, its clock is fine enough to test a scheduler by:
// Linux trusts a clock source of nanoseconds, and its timers are not bound to ticks.
func TestClock(t *testing.T) {
	for _, cpus := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(cpus), func(t *testing.T) {
			t.Parallel()
			e := vmmRun(t, "--cpus", fmt.Sprint(cpus), "--", program, "-helper=clock")
			var c clock
			if err := json.Unmarshal(e.stdout, &c); err != nil || e.code != 0 {
				t.Fatalf("exit code %d, %v, %s%s", e.code, err, e.stdout, e.stderr)
			}
			t.Logf("%d processors: clock source %s, steps of %v, high-resolution timers %t, 500 ms took %v", cpus, c.Source,
				c.Step, c.HighResolution, c.Slept)
			trusted := map[string]bool{"kvm-clock": true, "tsc": true, "tsc-early": true, // early: in the first second or two
				"arch_sys_counter": true}
			if !trusted[c.Source] || c.Step >= time.Microsecond || !c.HighResolution {
				t.Errorf("%+v", c)
			}
			// how much longer on an idle host is in the benchmark
			if c.Slept < 500*time.Millisecond || c.Slept > 30*time.Second {
				t.Errorf("a sleep of 500 ms took %v", c.Slept)
			}
		})
	}
}
