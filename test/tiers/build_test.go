package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Each test that does not run everywhere is there, under this name.
func TestNamesOfTests(t *testing.T) {
	files, err := filepath.Glob("../linux/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	there := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t `).FindAllSubmatch(text, -1) {
			there[string(m[1])] = true
		}
	}
	for _, group := range slices.Concat(anyPlace, anyKernel) {
		m := regexp.MustCompile(`^\^(Test\w*)\(([\w|]+)\)\$$`).FindStringSubmatch(group)
		if m == nil {
			t.Fatalf("%q", group)
		}
		for name := range strings.SplitSeq(m[2], "|") {
			if !there[m[1]+name] {
				t.Errorf("no %s%s in test/linux", m[1], name)
			}
		}
	}
}
