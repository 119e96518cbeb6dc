// Package docs tests what the documentation says against the code that it is about.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root is the repository's folder.
const root = "../.."

// page reads a file of the repository.
func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// section is the part of a page below a heading, up to the next one.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut("\n"+text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("there is no heading %q", heading)
	}
	body, _, _ := strings.Cut(rest, "\n#")
	return body
}

// tables are the tables in a text: rows of cells, without their headings. In a cell, ` and \ are gone.
func tables(text string) (all [][][]string) {
	var rows [][]string
	for line := range strings.Lines(text + "\n\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if len(rows) > 2 {
				all = append(all, rows[2:])
			}
			rows = nil
			continue
		}
		rows = append(rows, cells(line))
	}
	return all
}

// A bar that is text has a backslash before it.
var bar = regexp.MustCompile(`(^|[^\\])\|`)

func cells(row string) (cells []string) {
	row = bar.ReplaceAllString(strings.Trim(row, "|"), "$1\x00")
	for cell := range strings.SplitSeq(row, "\x00") {
		cell = strings.ReplaceAll(cell, `\|`, "|")
		cells = append(cells, strings.TrimSpace(strings.ReplaceAll(cell, "`", "")))
	}
	return cells
}
