// Package junit writes test results as JUnit's XML, as CI systems read it.
package junit

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/printable"
)

// Suite is a test suite.
type Suite struct {
	Name      string
	StartedAt time.Time
	Duration  time.Duration
	Cases     []Case
	Stdout    string
	Stderr    string
}

// Case is a test case: passed, unless it says otherwise.
type Case struct {
	Name     string
	Class    string
	Duration time.Duration // 0 if it is not known
	Failure  *Problem      // what was tested is wrong
	Error    *Problem      // it could not be tested
	Skipped  *Problem
	Earlier  []Problem // attempts that failed before the one that counts
}

// Problem is why a case did not pass.
type Problem struct {
	Type    string
	Message string
	Text    string
}

type xmlSuite struct {
	XMLName   xml.Name  `xml:"testsuite"`
	Name      string    `xml:"name,attr"`
	Tests     int       `xml:"tests,attr"`
	Failures  int       `xml:"failures,attr"`
	Errors    int       `xml:"errors,attr"`
	Skipped   int       `xml:"skipped,attr,omitempty"`
	Time      string    `xml:"time,attr"`
	Timestamp string    `xml:"timestamp,attr"`
	Cases     []xmlCase `xml:"testcase"`
	SystemOut string    `xml:"system-out,omitempty"`
	SystemErr string    `xml:"system-err,omitempty"`
}

type xmlCase struct {
	Name      string       `xml:"name,attr"`
	ClassName string       `xml:"classname,attr"`
	Time      string       `xml:"time,attr,omitempty"`
	Failure   *xmlProblem  `xml:"failure"`
	Error     *xmlProblem  `xml:"error"`
	Skipped   *xmlProblem  `xml:"skipped"`
	Flaky     []xmlProblem `xml:"flakyFailure"` // of a case that passed; both as Maven's Surefire writes them
	Rerun     []xmlProblem `xml:"rerunFailure"` // of one that did not
}

type xmlProblem struct {
	Type    string `xml:"type,attr,omitempty"`
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// Write writes a suite. What XML does not allow in a text is replaced.
func Write(w io.Writer, s Suite) error {
	x := xmlSuite{
		Name:      Text(s.Name),
		Tests:     len(s.Cases),
		Time:      seconds(s.Duration),
		Timestamp: s.StartedAt.UTC().Format("2006-01-02T15:04:05"),
		SystemOut: Text(s.Stdout),
		SystemErr: Text(s.Stderr),
	}
	for _, c := range s.Cases {
		xc := xmlCase{Name: Text(c.Name), ClassName: Text(c.Class),
			Failure: c.Failure.xml(), Error: c.Error.xml(), Skipped: c.Skipped.xml()}
		if c.Duration > 0 {
			xc.Time = seconds(c.Duration)
		}
		earlier := &xc.Flaky
		if c.Failure != nil || c.Error != nil {
			earlier = &xc.Rerun
		}
		for _, p := range c.Earlier {
			*earlier = append(*earlier, *p.xml())
		}
		switch {
		case c.Failure != nil:
			x.Failures++
		case c.Error != nil:
			x.Errors++
		case c.Skipped != nil:
			x.Skipped++
		}
		x.Cases = append(x.Cases, xc)
	}
	var b bytes.Buffer
	b.WriteString(xml.Header)
	e := xml.NewEncoder(&b)
	e.Indent("", "  ")
	if err := e.Encode(x); err != nil {
		return err
	}
	b.WriteString("\n")
	// encoding/xml writes these as they are. Only texts and values of attributes have such characters.
	_, err := w.Write(printable.Escape(b.Bytes(), func(out []byte, c rune) []byte {
		return fmt.Appendf(out, "&#x%x;", c)
	}))
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

func (p *Problem) xml() *xmlProblem {
	if p == nil {
		return nil
	}
	return &xmlProblem{Text(p.Type), Text(p.Message), Text(p.Text)}
}

// Text replaces what XML 1.0, section 2.2, does not allow in a document.
func Text(s string) string {
	return strings.Map(func(c rune) rune {
		if c < 0x20 && c != '\t' && c != '\n' && c != '\r' || c == 0xfffe || c == 0xffff {
			return '\ufffd'
		}
		return c
	}, strings.ToValidUTF8(s, "\ufffd"))
}
