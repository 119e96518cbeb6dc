package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/ktstr/ktstr-vmm/internal/junit"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// JUnit writes the result as a JUnit test suite. Its name and class say what ran on which kernel, because readers
// identify a case by class and name, whatever file it is from. The console is the standard output, what is known of the
// scheduler under test the standard error. The first case is the run itself: a failure if the guest's own code says so,
// an error if the run ended in any other way. Each TEST result that says whether it passed is a case of its own, with
// the result's name.
func JUnit(w io.Writer, r *run.Result) error {
	name := r.Name
	if name == "" {
		name = "ktstr-vmm"
	}
	class := name + " on " + r.Kernel
	s := junit.Suite{
		Name:      class,
		StartedAt: r.StartedAt,
		Duration:  r.Duration,
		Cases:     append([]junit.Case{runCase(r, name)}, resultCases(r.TestResults, name)...),
		Stdout:    string(r.Console),
		Stderr:    schedulerSaid(r),
	}
	for i := range s.Cases {
		s.Cases[i].Class = class
	}
	return junit.Write(w, s)
}

// runCase is the case of the run itself.
func runCase(r *run.Result, name string) junit.Case {
	c := junit.Case{Name: name, Duration: r.Duration}
	problem := &junit.Problem{Type: string(r.Outcome), Message: r.Reason}
	if r.Crash != nil {
		problem.Text = *r.Crash
	}
	switch {
	case r.Outcome == run.Exited && r.ExitCode == 0:
	case r.Outcome == run.Exited:
		c.Failure = problem
	default:
		c.Error = problem
	}
	return c
}

// resultCases are the cases of TEST results: objects whose "passed" is true or false. What "message" says of a
// failure is its text, and where that is not there, the whole result is. taken is a name that none of them may have.
func resultCases(results []run.TestResult, taken string) (cases []junit.Case) {
	seen := map[string]int{taken: 1}
	for i, r := range results {
		payload := r.Payload
		var result struct {
			Name, Message any // strings, but a guest may have sent anything
			Passed        *bool
		}
		if !utf8.Valid(payload) || json.Unmarshal(payload, &result) != nil || result.Passed == nil {
			continue
		}
		name, _ := result.Name.(string)
		if name == "" {
			name = fmt.Sprintf("result %d", i+1)
		}
		seen[name]++
		if n := seen[name]; n > 1 {
			name = fmt.Sprintf("%s (%d)", name, n)
		}
		c := junit.Case{Name: name}
		if !*result.Passed {
			message, _ := result.Message.(string)
			text := message
			if text == "" {
				text = string(payload)
			}
			first, _, _ := strings.Cut(text, "\n")
			c.Failure = &junit.Problem{Type: "TEST", Message: first, Text: text}
		}
		cases = append(cases, c)
	}
	return cases
}
