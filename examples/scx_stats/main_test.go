package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What scx_simple and scx_qmap of Linux 6.12 print, and other lines.
func TestPassOn(t *testing.T) {
	const text = "local=3 global=17\nhello\n" +
		"stats  : enq=20 dsp=18 delta=2 reenq/cpu0=0/0 deq=1 core=0 enq_ddsp=4\nEXIT: unregistered from user space"
	want := []metrics{
		{Metrics: []metric{{"local", 3}, {"global", 17}}},
		{Metrics: []metric{{"enq", 20}, {"dsp", 18}, {"delta", 2}, {"deq", 1}, {"core", 0}, {"enq_ddsp", 4}}},
	}
	var out strings.Builder
	var got []metrics
	err := passOn(strings.NewReader(text), &out, func(m metrics) error {
		got = append(got, m)
		return nil
	})
	if diff := cmp.Diff(want, got); diff != "" || err != nil || out.String() != text {
		t.Errorf("%v, %q\n%s", err, out.String(), diff)
	}
}

// What can't be sent keeps no line from being passed on.
func TestPassOnUnsent(t *testing.T) {
	var out strings.Builder
	failure := errors.New("no room")
	err := passOn(strings.NewReader("a=1\nb=2\n"), &out, func(metrics) error { return failure })
	if err != failure || out.String() != "a=1\nb=2\n" {
		t.Errorf("%v, %q", err, out.String())
	}
}

// It ends as the scheduler does.
func TestRun(t *testing.T) {
	t.Setenv("KTSTR_SOCKET", "")
	for want, script := range map[int]string{0: "exit 0", 3: "exit 3", 143: "kill -TERM $$"} {
		if code, err := run([]string{"/bin/sh", "-c", script}); code != want || err != nil {
			t.Errorf("%s: %d, %v", script, code, err)
		}
	}
	if _, err := run(nil); err == nil {
		t.Error("it runs nothing")
	}
}
