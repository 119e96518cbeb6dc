package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each test that is run on one kernel is there, under this name.
func TestAnyKernel(t *testing.T) {
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
	for _, group := range anyKernel {
		names := strings.TrimSuffix(strings.TrimPrefix(group, "^Test("), ")$")
		for name := range strings.SplitSeq(names, "|") {
			if !there["Test"+name] {
				t.Errorf("no Test%s in test/linux", name)
			}
		}
	}
}
