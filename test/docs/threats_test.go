package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const threatModel = "docs/threat-model.md"

var (
	// shownBy is how the page names tests: `package`: TestA, FuzzB.
	shownBy  = regexp.MustCompile("`([a-z0-9/-]+)`: ((?:(?:Test|Fuzz)\\w+(?:,\\s+)?)+)")
	testName = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w*`)
	inCode   = regexp.MustCompile("`([a-z0-9_/-]+(?:\\.go)?)`")
)

// hasTest reports whether a package has a test or a fuzz target of that name.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains("\n"+string(text), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}

// What is said to show something exists, and so do the places where it is said to be enforced.
func TestThreatModel(t *testing.T) {
	text := page(t, threatModel)
	named := 0
	for _, m := range shownBy.FindAllStringSubmatch(text, -1) {
		for _, name := range testName.FindAllString(m[2], -1) {
			named++
			if !hasTest(t, m[1], name) {
				t.Errorf("%s has no %s", m[1], name)
			}
		}
	}
	if all := len(testName.FindAllString(text, -1)); named == 0 || named != all {
		t.Errorf("%d tests are named, %d with a package", all, named)
	}
	for _, rows := range tables(text) {
		for _, row := range rows {
			if len(row) != 4 {
				continue
			}
			if !shownBy.MatchString("`" + strings.NewReplacer(": ", "`: ", "; ", "; `").Replace(row[3])) {
				t.Errorf("%q: no test shows it", row[0])
			}
		}
	}
	for line := range strings.Lines(text) {
		for _, m := range inCode.FindAllStringSubmatch(line, -1) {
			if first, _, found := strings.Cut(m[1], "/"); !found || first == "" {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(m[1]))); err != nil {
				t.Errorf("%s: %v", m[1], err)
			}
		}
	}
}
