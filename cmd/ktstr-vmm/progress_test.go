package main

import (
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// The rest takes what it took before, or what is over took, by as many as run at a time.
func TestEstimate(t *testing.T) {
	a, b, x := &suite.Run{Name: "a"}, &suite.Run{Name: "b"}, &suite.Run{Name: "x"}
	e := newEstimate(chosen{runs: []*suite.Run{a, b}, durations: map[string]float64{"a": 10, "b": 20}})
	left := func(want time.Duration) {
		t.Helper()
		got, ok := e.left()
		if !ok || got > want || got < want-5*time.Second {
			t.Errorf("%v, %t, want %v", got, ok, want)
		}
	}
	left(30 * time.Second)
	e.start(a)
	e.start(b)
	left(15 * time.Second)
	e.end(a, &suite.Result{})
	left(20 * time.Second)

	e = newEstimate(chosen{runs: []*suite.Run{a, b, x}})
	if got, ok := e.left(); ok {
		t.Errorf("%v, and nothing is known", got)
	}
	e.start(a)
	done := &suite.Result{}
	done.Duration = 8
	e.end(a, done)
	left(16 * time.Second)
}
