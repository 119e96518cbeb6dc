// Package latency is an example of a test for a Linux guest. It runs anywhere; in a guest of
// ktstr-vmm it adds what it measured to the run's report.
//
//	go test -exec "ktstr-vmm run --kernel $PWD/vmlinuz --report $PWD/report.json --report-format json --" \
//		./examples/latency
package latency

import (
	"errors"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/ktstr"
)

// TestLatency asks how late the scheduler wakes a sleeper.
func TestLatency(t *testing.T) {
	const sleep, most = 10 * time.Millisecond, 5 * time.Second
	worst := time.Duration(0)
	for range 20 {
		start := time.Now()
		time.Sleep(sleep)
		worst = max(worst, time.Since(start)-sleep)
	}
	if worst > most {
		t.Errorf("a sleeper was woken %v late, at most %v", worst, most)
	}

	host, err := ktstr.Connect()
	if errors.Is(err, ktstr.ErrNotInGuest) {
		t.Logf("worst wake-up: %v late", worst)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := host.Metrics(map[string]any{"wakeup_worst_ns": worst.Nanoseconds()}); err != nil {
		t.Error(err)
	}
	if err := host.Result(map[string]any{"name": t.Name(), "passed": !t.Failed()}); err != nil {
		t.Error(err)
	}
}
