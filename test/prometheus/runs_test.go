package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// report is what the test takes from a run's JSON report.
type report struct {
	Suite    string  `json:"suite"`
	Outcome  string  `json:"outcome"`
	Duration float64 `json:"duration_seconds"`
	Ring     struct {
		Messages  float64            `json:"messages"`
		Bytes     float64            `json:"bytes"`
		ByType    map[string]float64 `json:"by_type"`
		Drops     float64            `json:"drops"`
		CRCErrors float64            `json:"crc_errors"`
		Faults    []struct {
			Kind string `json:"kind"`
		} `json:"faults"`
	} `json:"ring"`
}

// sums are what runs count, by the label that tells it apart, or by "" where there is none.
type sums struct {
	messages, faults, outcomes map[string]float64
	bytes, drops, crc, runs    float64
	seconds                    float64
}

func sum(reports []report) sums {
	s := sums{messages: map[string]float64{}, faults: map[string]float64{}, outcomes: map[string]float64{}}
	for _, r := range reports {
		for kind, n := range r.Ring.ByType {
			s.messages[kind] += n
		}
		for _, f := range r.Ring.Faults {
			s.faults[f.Kind]++
		}
		s.outcomes[r.Outcome]++
		s.bytes += r.Ring.Bytes
		s.drops += r.Ring.Drops
		s.crc += r.Ring.CRCErrors
		s.seconds += r.Duration
		s.runs++
	}
	return s
}

// counters are what Prometheus is to say: by metric, and by the label that it is asked for.
func (s sums) counters() map[[2]string]map[string]float64 {
	one := func(v float64) map[string]float64 { return map[string]float64{"": v} }
	return map[[2]string]map[string]float64{
		{"ktstr_vmm_ring_messages_total", "type"}: s.messages,
		{"ktstr_vmm_ring_faults_total", "kind"}:   s.faults,
		{"ktstr_vmm_runs_total", "outcome"}:       s.outcomes,
		{"ktstr_vmm_ring_bytes_total", ""}:        one(s.bytes),
		{"ktstr_vmm_ring_drops_total", ""}:        one(s.drops),
		{"ktstr_vmm_ring_crc_errors_total", ""}:   one(s.crc),
	}
}

// scenarios are how the runs of a test go, each of which is in a suite of its own, for its push replaces those of the
// same suite: 50 that end well soon, and others.
func scenarios() []string {
	all := []string{"hang", "flood", "overrun", "flood,count=300000", "overrun,count=300000",
		"hostile,lie=crc,exit=0", "hostile,lie=length", "crash", "sched-exit", "fail", "silent"}
	for range 50 {
		all = append(all, "ok")
	}
	return all
}

// runs runs demos, two at a time, and returns their reports in order. The suites are numbered. It can be called from
// goroutines, as run can.
func (l *lab) runs(scenarios []string, first int) []report {
	reports := make([]report, len(scenarios))
	var all sync.WaitGroup
	next := make(chan int)
	for range 2 {
		all.Go(func() {
			for i := range next {
				reports[i] = l.run(scenarios[i], fmt.Sprintf("suite-%02d", first+i))
			}
		})
	}
	for i := range scenarios {
		next <- i
	}
	close(next)
	all.Wait()
	return reports
}

// run runs one demo that reports by all three ways, and returns its JSON report.
func (l *lab) run(scenario, suite string) (r report) {
	file, err := os.CreateTemp(l.dir, "report-*.json")
	if err != nil {
		l.t.Error(err)
		return r
	}
	defer file.Close()
	timeout := "60s"
	if scenario == "hang" {
		timeout = "5s" // so that it is seen running
	}
	p, err := l.begin(l.program, "demo", "--scenario", scenario, "--suite", suite, "--timeout", timeout, "--memory", "32M",
		"--shm-size", "64K", "--metrics-textfile", filepath.Join(l.dir, "textfiles", "ktstr-vmm.prom"),
		"--metrics-push", "http://"+l.at("9091"), "--report", file.Name(), "--report-format", "json")
	if err != nil {
		l.t.Error(err)
		return r
	}
	<-p.done // at its --timeout, at the latest
	text, err := os.ReadFile(file.Name())
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil || r.Suite != suite {
		l.t.Errorf("--scenario %s: %v\n%s", scenario, err, p.said())
		return report{}
	}
	return r
}

// The scenarios are what the sums need: each of their parts is more than 0.
func checkSums(t *testing.T, s sums) {
	t.Helper()
	if s.drops == 0 || s.crc == 0 || len(s.faults) == 0 || s.outcomes["exited"] < 50 || s.outcomes["timeout"] == 0 ||
		s.messages["RAWO"] == 0 {
		t.Fatalf("the runs were to have some of all: %+v", s)
	}
}
