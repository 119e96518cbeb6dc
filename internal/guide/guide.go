// Package guide follows pages of the documentation: it runs their commands, and compares what these print with what the
// page shows.
package guide

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Step is a block of commands of a page, and what the page shows of their output.
type Step struct{ Commands, Output string }

// Steps reads the commands of a page, blocks of sh, and the block without a language behind each. One that has its own
// command, behind a "$", is not followed, and belongs to no other.
func Steps(page string) (steps []Step) {
	blocks := regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(page, -1)
	for i, b := range blocks {
		if b[1] == "sh" {
			s := Step{Commands: b[2]}
			if i+1 < len(blocks) && blocks[i+1][1] == "" && !strings.HasPrefix(blocks[i+1][2], "$ ") {
				s.Output = blocks[i+1][2]
			}
			steps = append(steps, s)
		}
	}
	return steps
}

var (
	// number is what differs from run to run: durations, and what has a decimal point. An exit code and a count do not.
	number = regexp.MustCompile(`\d+(\.\d+((ms|µs|s)\b)?|(ms|µs|s)\b)`)
	// emulated is what "auto" says where there is no KVM, or none that is fast enough.
	emulated = regexp.MustCompile(`(?m)^.*QEMU's emulator runs the guest.*\n`)
	// slower is what "suite compare" says where a machine was slower the second time.
	slower = regexp.MustCompile(`(?m)^slower:\n(  .*\n)*`)
	blanks = regexp.MustCompile(` +`)
)

func normal(text string) string {
	text = slower.ReplaceAllString(emulated.ReplaceAllString(text, ""), "")
	return blanks.ReplaceAllString(number.ReplaceAllString(text, "0"), " ")
}

// pattern matches what a page shows: "…" is anything in a line, and a line of its own any lines.
func pattern(output string) *regexp.Regexp {
	p := regexp.QuoteMeta(normal(output))
	p = regexp.MustCompile(`(?m)^ ?…\n`).ReplaceAllString(p, `(?s:.*)`)
	return regexp.MustCompile(`\A` + strings.ReplaceAll(p, "…", `.*`) + `\z`)
}

// Shows reports whether a page that shows this output shows what was printed. How long something took may differ.
func Shows(output, printed string) bool {
	return pattern(output).MatchString(normal(printed))
}

// shell runs commands up to the first that fails.
func shell(commands string) *exec.Cmd { return exec.Command("sh", "-ec", commands) }

// Follow runs the steps of a page in their order, from the folder home on, and fails the test if one fails or prints
// something else than the page shows.
func Follow(t *testing.T, page, home string, env []string, least int) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	all := Steps(string(text))
	if len(all) < least {
		t.Fatalf("%s has %d steps, want at least %d", page, len(all), least)
	}
	dir := filepath.Join(t.TempDir(), "dir")
	before := ""
	for _, s := range all {
		// A shell for each, in the folder in which the last one was.
		sh := shell(fmt.Sprintf("%s%spwd > '%s'", before, s.Commands, dir))
		sh.Env, sh.Dir = env, home
		out, err := sh.CombinedOutput()
		if err != nil {
			t.Fatalf("%s%v: %s", s.Commands, err, out)
		}
		where, err := os.ReadFile(dir)
		if err != nil {
			t.Fatal(err)
		}
		before = "cd '" + strings.TrimSpace(string(where)) + "'\n"
		if !Shows(s.Output, string(out)) {
			t.Errorf("%sprints\n%s\nand %s shows\n%s", s.Commands, out, filepath.Base(page), s.Output)
		}
	}
}
