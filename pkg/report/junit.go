package report

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

type junitSuite struct {
	XMLName   xml.Name    `xml:"testsuite"`
	Name      string      `xml:"name,attr"`
	Tests     int         `xml:"tests,attr"`
	Failures  int         `xml:"failures,attr"`
	Errors    int         `xml:"errors,attr"`
	Time      string      `xml:"time,attr"`
	Timestamp string      `xml:"timestamp,attr"`
	Cases     []junitCase `xml:"testcase"`
	SystemOut string      `xml:"system-out,omitempty"`
	SystemErr string      `xml:"system-err,omitempty"`
}

type junitCase struct {
	Name      string        `xml:"name,attr"`
	ClassName string        `xml:"classname,attr"`
	Time      string        `xml:"time,attr,omitempty"`
	Failure   *junitProblem `xml:"failure"`
	Error     *junitProblem `xml:"error"`
}

type junitProblem struct {
	Type    string `xml:"type,attr"`
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

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
	class := xmlText(name + " on " + r.Kernel)
	seconds := fmt.Sprintf("%.3f", r.Duration.Seconds())
	s := junitSuite{
		Name:      class,
		Time:      seconds,
		Timestamp: r.StartedAt.UTC().Format("2006-01-02T15:04:05"),
		Cases:     append([]junitCase{runCase(r, name, seconds)}, resultCases(r.TestResults, name)...),
		SystemOut: xmlText(string(r.Console)),
		SystemErr: xmlText(schedulerSaid(r)),
	}
	for i := range s.Cases {
		c := &s.Cases[i]
		c.Name, c.ClassName = xmlText(c.Name), class
		s.Tests++
		if c.Failure != nil {
			s.Failures++
		}
		if c.Error != nil {
			s.Errors++
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// runCase is the case of the run itself.
func runCase(r *run.Result, name, seconds string) junitCase {
	c := junitCase{Name: name, Time: seconds}
	problem := &junitProblem{Type: string(r.Outcome), Message: xmlText(r.Reason)}
	if r.Crash != nil {
		problem.Text = xmlText(*r.Crash)
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
func resultCases(results [][]byte, taken string) (cases []junitCase) {
	seen := map[string]int{taken: 1}
	for i, payload := range results {
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
		c := junitCase{Name: name}
		if !*result.Passed {
			message, _ := result.Message.(string)
			text := message
			if text == "" {
				text = string(payload)
			}
			first, _, _ := strings.Cut(text, "\n")
			c.Failure = &junitProblem{Type: "TEST", Message: xmlText(first), Text: xmlText(text)}
		}
		cases = append(cases, c)
	}
	return cases
}

// xmlText replaces what XML 1.0, section 2.2, does not allow in a document.
func xmlText(s string) string {
	return strings.Map(func(c rune) rune {
		if c < 0x20 && c != '\t' && c != '\n' && c != '\r' || c == 0xfffe || c == 0xffff {
			return '\ufffd'
		}
		return c
	}, strings.ToValidUTF8(s, "\ufffd"))
}
