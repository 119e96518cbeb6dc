package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// event is what "go test -json" and test2json say (cmd/test2json's documentation).
type event struct {
	Action     string
	Package    string
	Test       string
	Output     string
	Key, Value string // of the action attr
}

// outcome is what became of one test.
type outcome struct {
	action  string // pass, fail, skip; run where it did not end
	backend string // what the test says that it needs
	arch    string // what it says that its guest is
	output  string // its last lines
}

// maxOutput bounds what is kept of a test's output: the reason of its skipping stands at the end.
const maxOutput = 2000

// results are those of one package's tests at one place.
type results struct {
	label
	pkg    string
	tests  map[string]*outcome
	order  []string // of the tests
	failed bool     // the package as a whole
	output string   // its own, at the end
}

// label says where tests ran: behind the package's path, for what is not "go test" on this host.
type label struct{ backend, arch, kernel, where string }

func (l label) String() string {
	if l.kernel != "" {
		return fmt.Sprintf("[%s, %s, %s, %s]", l.backend, l.arch, l.kernel, l.where)
	}
	return fmt.Sprintf("[%s, %s, %s]", l.backend, l.arch, l.where)
}

// parseLabel takes a package's path and its label apart.
func parseLabel(pkg string) (string, label) {
	path, text, ok := strings.Cut(pkg, " [")
	if !ok {
		return pkg, label{}
	}
	words := strings.Split(strings.TrimSuffix(text, "]"), ", ")
	l := label{backend: words[0], where: words[len(words)-1]}
	if len(words) > 2 {
		l.arch = words[1]
	}
	if len(words) > 3 {
		l.kernel = words[2]
	}
	return path, l
}

// readResults reads files of test events. Where a file's tests ran is its name, unless their
// packages' labels say.
func readResults(paths ...string) ([]*results, error) {
	var all []*results
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // of a step that did not begin
		}
		if err != nil {
			return nil, err
		}
		where := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
		some, err := parseResults(f, where)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// parseResults reads test events; lines that are none are passed over.
func parseResults(r io.Reader, where string) ([]*results, error) {
	var all []*results
	byPackage := map[string]*results{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if json.Unmarshal(line, &e) == nil && e.Package != "" {
			p, ok := byPackage[e.Package]
			if !ok {
				p = &results{tests: map[string]*outcome{}}
				if p.pkg, p.label = parseLabel(e.Package); p.where == "" {
					p.where = where
				}
				byPackage[e.Package] = p
				all = append(all, p)
			}
			p.add(e)
		}
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *results) add(e event) {
	if e.Test == "" {
		switch e.Action {
		case "fail":
			p.failed = true
		case "output":
			p.output = last(p.output + e.Output)
		}
		return
	}
	t, ok := p.tests[e.Test]
	if !ok {
		t = &outcome{action: "run"}
		p.tests[e.Test] = t
		p.order = append(p.order, e.Test)
	}
	switch e.Action {
	case "pass", "fail", "skip":
		t.action = e.Action
	case "attr":
		switch e.Key {
		case "backend":
			t.backend = e.Value
		case "arch":
			t.arch = e.Value
		}
	case "output":
		t.output = last(t.output + e.Output)
	}
}

// last is the end of a text.
func last(s string) string { return s[max(0, len(s)-maxOutput):] }

// parents calls fn with a test's parents, the nearest first.
func parents(test string, fn func(string)) {
	for i := strings.LastIndexByte(test, '/'); i > 0; i = strings.LastIndexByte(test[:i], '/') {
		fn(test[:i])
	}
}

// skippedTests are the packages' tests, by their topmost names, of which something that needs a back end was
// skipped.
func skippedTests(all []*results, backend string) map[string][]string {
	skipped := map[string][]string{}
	for _, p := range all {
		seen := map[string]bool{}
		for _, name := range p.order {
			top, _, _ := strings.Cut(name, "/")
			if p.tests[name].action == "skip" && p.backendOf(name) == backend && !seen[top] {
				seen[top] = true
				skipped[p.pkg] = append(skipped[p.pkg], top)
			}
		}
	}
	return skipped
}
