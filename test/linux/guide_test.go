//go:build linuxbed

package linux

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// guideStep is a block of commands of the guide, and what it shows of their output.
type guideStep struct{ commands, output string }

// steps reads the commands of a page, and the block behind each.
func steps(page string) (steps []guideStep) {
	blocks := regexp.MustCompile("(?ms)^```(sh)?\n(.*?)^```$").FindAllStringSubmatch(page, -1)
	for i, b := range blocks {
		if b[1] == "sh" {
			s := guideStep{commands: b[2]}
			if i+1 < len(blocks) && blocks[i+1][1] == "" {
				s.output = blocks[i+1][2]
			}
			steps = append(steps, s)
		}
	}
	return steps
}

var (
	// number is what differs from run to run, with what a duration has for a unit.
	number = regexp.MustCompile(`\d+(\.\d+)?(ms|µs|m?s\b)?`)
	// emulated is what "auto" says where there is no KVM, or none that is fast enough.
	emulated = regexp.MustCompile(`(?m)^.*QEMU's emulator runs the guest.*\n`)
	blanks   = regexp.MustCompile(` +`)
)

func normal(text string) string {
	return blanks.ReplaceAllString(number.ReplaceAllString(emulated.ReplaceAllString(text, ""), "0"), " ")
}

// pattern matches what a guide shows: "…" is anything in a line, and a line of its own any lines.
func pattern(output string) *regexp.Regexp {
	p := regexp.QuoteMeta(normal(output))
	p = regexp.MustCompile(`(?m)^ ?…\n`).ReplaceAllString(p, `(?s:.*)`)
	return regexp.MustCompile(`\A` + strings.ReplaceAll(p, "…", `.*`) + `\z`)
}

// The guide is followed word by word, in the order of its steps.
func TestSchedExtGuide(t *testing.T) {
	t.Parallel()
	goTool := testenv.Tool(t, "go")
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "schedulers.md"))
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	repository, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(home, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"ktstr-vmm": repository, "linux": kernel, "bin/ktstr-vmm": vmm} {
		if err := os.Symlink(target, filepath.Join(home, name)); err != nil {
			t.Fatal(err)
		}
	}
	env := append(os.Environ(), "HOME="+home, "PATH="+bin+":"+os.Getenv("PATH"))
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		value, err := exec.Command(goTool, "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(value)))
	}
	all := steps(string(page))
	if len(all) < 5 {
		t.Fatalf("the guide has %d steps", len(all))
	}
	dir := filepath.Join(home, "dir")
	before := ""
	for _, s := range all {
		// A shell for each, in the folder in which the last one was.
		sh := exec.Command("sh", "-c", before+s.commands+"pwd > "+dir)
		sh.Env, sh.Dir = env, home
		out, err := sh.CombinedOutput()
		if err != nil {
			t.Fatalf("%s%v: %s", s.commands, err, out)
		}
		where, err := os.ReadFile(dir)
		if err != nil {
			t.Fatal(err)
		}
		before = "cd " + strings.TrimSpace(string(where)) + "\n"
		if !pattern(s.output).MatchString(normal(string(out))) {
			t.Errorf("%sprints\n%s\nand the guide shows\n%s", s.commands, out, s.output)
		}
	}
}
