package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

type junitSuite struct {
	XMLName   xml.Name  `xml:"testsuite"`
	Name      string    `xml:"name,attr"`
	Tests     int       `xml:"tests,attr"`
	Failures  int       `xml:"failures,attr"`
	Errors    int       `xml:"errors,attr"`
	Time      string    `xml:"time,attr"`
	Timestamp string    `xml:"timestamp,attr"`
	Case      junitCase `xml:"testcase"`
}

type junitCase struct {
	Name      string        `xml:"name,attr"`
	ClassName string        `xml:"classname,attr"`
	Time      string        `xml:"time,attr"`
	Failure   *junitProblem `xml:"failure"`
	Error     *junitProblem `xml:"error"`
	SystemOut string        `xml:"system-out,omitempty"`
}

type junitProblem struct {
	Type    string `xml:"type,attr"`
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes the result as a JUnit test suite of one case: a failure where the guest's own code
// says so, an error where the run ended in any other way.
func JUnit(w io.Writer, r *run.Result) error {
	seconds := fmt.Sprintf("%.3f", r.Duration.Seconds())
	s := junitSuite{
		Name:      "ktstr-vmm",
		Tests:     1,
		Time:      seconds,
		Timestamp: r.StartedAt.UTC().Format("2006-01-02T15:04:05"),
		Case:      junitCase{Name: xmlText(r.Kernel), ClassName: "ktstr-vmm", Time: seconds, SystemOut: xmlText(string(r.Console))},
	}
	problem := &junitProblem{Type: string(r.Outcome), Message: xmlText(r.Reason)}
	if r.Crash != nil {
		problem.Text = xmlText(*r.Crash)
	}
	switch {
	case r.Outcome == run.Exited && r.ExitCode == 0:
	case r.Outcome == run.Exited:
		s.Failures, s.Case.Failure = 1, problem
	default:
		s.Errors, s.Case.Error = 1, problem
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

// xmlText replaces what XML 1.0, section 2.2, does not allow in a document.
func xmlText(s string) string {
	return strings.Map(func(c rune) rune {
		if c < 0x20 && c != '\t' && c != '\n' && c != '\r' || c == 0xfffe || c == 0xffff {
			return '\ufffd'
		}
		return c
	}, strings.ToValidUTF8(s, "\ufffd"))
}
