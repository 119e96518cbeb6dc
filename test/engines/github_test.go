package engines

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// step is a step of GitHub's that runs a script.
type step struct {
	Name, ID, Run, Uses string
	Env                 map[string]string
}

// github is a job on a runner: a folder, and what its steps say to it.
type github struct {
	dir     string
	steps   []step
	context map[string]string // values of expressions, as in inputs.suite
	env     []string
}

// action begins a job that has our action as its step.
func action(t *testing.T, inputs map[string]string) *github {
	t.Helper()
	file := load[struct {
		Inputs map[string]struct{ Default string }
		Runs   struct{ Steps []step }
	}](t, configs(t, "ci/github/action.yml"))[0]
	g := &github{dir: t.TempDir(), steps: file.Runs.Steps, context: map[string]string{}}
	for name, input := range file.Inputs {
		g.context["inputs."+name] = input.Default
	}
	for name, value := range inputs {
		if _, ok := file.Inputs[name]; !ok {
			t.Fatalf("the action has no input %s", name)
		}
		g.context["inputs."+name] = value
	}
	g.env = environ(t, "CI=true", "GITHUB_ACTIONS=true", "GITHUB_OUTPUT="+filepath.Join(g.dir, "output"),
		"GITHUB_STEP_SUMMARY="+filepath.Join(g.dir, "summary"))
	return g
}

var expression = regexp.MustCompile(`\$\{\{ *([^ }]+) *\}\}`)

// start starts the script of the step with this name, as the runner does.
func (g *github) start(t *testing.T, name string) *process {
	t.Helper()
	for _, s := range g.steps {
		if s.Name != name || s.Run == "" {
			continue
		}
		env := g.env
		for key, value := range s.Env {
			value = expression.ReplaceAllStringFunc(value, func(e string) string {
				v, ok := g.context[expression.FindStringSubmatch(e)[1]]
				if !ok {
					t.Fatalf("%s: %s is not known", name, e)
				}
				return v
			})
			env = append(env[:len(env):len(env)], key+"="+value)
		}
		return command(t, env, g.dir, "bash", "--noprofile", "--norc", "-eo", "pipefail", write(t, "script.sh", s.Run))
	}
	t.Fatalf("there is no step %q with a script", name)
	return nil
}

// do does a step.
func (g *github) do(t *testing.T, name string) (out string, code int) {
	t.Helper()
	return g.start(t, name).end(t)
}

// file reads one of the files by which steps talk to the runner, "" if it is not there.
func (g *github) file(name string) string {
	text, _ := os.ReadFile(filepath.Join(g.dir, name))
	return string(text)
}

// suite does the steps from the suite to the verdict, and returns what they print and the verdict.
func (g *github) suite(t *testing.T) (ran, shown string, code int) {
	t.Helper()
	ran, code = g.do(t, "Run the suite")
	if code != 0 {
		t.Fatalf("the step ends with %d\n%s", code, ran)
	}
	value, ok := strings.CutPrefix(strings.TrimSpace(g.file("output")), "exit-code=")
	if !ok {
		t.Fatalf("outputs %q", g.file("output"))
	}
	g.context["steps.suite.outputs.exit-code"] = value
	shown, code = g.do(t, "Show what failed")
	if code != 0 {
		t.Fatalf("the step ends with %d\n%s", code, shown)
	}
	_, code = g.do(t, "Give the verdict")
	return ran, shown, code
}

// Where KVM can be used or QEMU is there, nothing has to be changed.
func TestGitHubHost(t *testing.T) {
	t.Parallel()
	g := action(t, nil)
	_, err := os.Stat("/dev/kvm")
	if f, errOpen := os.OpenFile("/dev/kvm", os.O_RDWR, 0); errOpen == nil {
		f.Close()
	} else if err == nil {
		testenv.Missing(t, "a /dev/kvm that can be opened, or none", errOpen)
	}
	out, code := g.do(t, "Make KVM usable")
	if code != 0 || strings.Contains(out, "::notice title=ktstr-vmm::there is no /dev/kvm") != os.IsNotExist(err) {
		t.Errorf("exit code %d, /dev/kvm: %v\n%s", code, err, out)
	}
	g = action(t, map[string]string{"kernels-command": "mkdir kernels\nfalse | cat\necho not here"})
	if out, code := g.do(t, "Get kernels"); code != 1 || out != "" {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

// usable does the step that makes KVM usable with these packages as input, where /dev has what bwrap is told and there
// is no program but a sudo, and returns what that was asked for.
func usable(t *testing.T, packages string, dev ...string) (out, asked string) {
	t.Helper()
	g := action(t, map[string]string{"packages": packages})
	log := filepath.Join(g.dir, "asked")
	sudo := filepath.Join(g.dir, "sudo")
	text := "#!/bin/bash\necho \"$*\" >>" + log + "\n[ \"$1\" != tee ] || /bin/cat >>" + log + "\n"
	if err := os.WriteFile(sudo, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, s := range g.steps {
		if s.Name == "Make KVM usable" {
			args := append([]string{"--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--bind", g.dir, g.dir}, dev...)
			args = append(args, "--setenv", "PATH", g.dir, "--setenv", "PACKAGES", packages,
				"/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", s.Run)
			out, code := command(t, g.env, g.dir, testenv.Tool(t, "bwrap"), args...).end(t)
			if code != 0 {
				t.Errorf("exit code %d\n%s", code, out)
			}
			return out, g.file("asked")
		}
	}
	t.Fatal("there is no such step")
	return "", ""
}

// A /dev/kvm that can't be opened gets a rule of udev's; where there is none, there is QEMU. All packages are
// installed, whatever divides them.
func TestGitHubSetup(t *testing.T) {
	t.Parallel()
	const rule = "tee /etc/udev/rules.d/99-ktstr-vmm.rules\n" +
		"KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\", OPTIONS+=\"static_node=kvm\"\n" +
		"udevadm control --reload-rules\nudevadm trigger --name-match=kvm --settle\n"
	// Nobody may write to a file on what is mounted to be read.
	locked := []string{"--ro-bind", write(t, "kvm", ""), "/dev/kvm"}
	if out, asked := usable(t, "", locked...); asked != rule {
		t.Errorf("sudo was asked for\n%s%s", asked, out)
	}
	const install = "apt-get -qq update\napt-get -qq install --no-install-recommends "
	if out, asked := usable(t, "qemu-system-arm  jq\nxz-utils\n", locked...); asked !=
		rule+install+"qemu-system-arm jq xz-utils\n" {
		t.Errorf("sudo was asked for\n%s%s", asked, out)
	}
	out, asked := usable(t, "qemu-system-arm\n")
	if asked != install+"qemu-system-arm qemu-system-x86\n" || !strings.Contains(out, "::notice title=ktstr-vmm::") {
		t.Errorf("sudo was asked for\n%s%s", asked, out)
	}
}

// Kernels are kept as soon as they are there: what comes after may fail.
func TestGitHubKernels(t *testing.T) {
	t.Parallel()
	at := map[string]int{}
	for i, s := range action(t, nil).steps {
		at[s.Name], at[strings.Split(s.Uses, "@")[0]] = i, i
	}
	if get, keep := at["Get kernels"], at["actions/cache/save"]; keep != get+1 || keep > at["Run the suite"] {
		t.Errorf("the steps are %v", at)
	}
	if i, ok := at["actions/cache"]; ok {
		t.Errorf("step %d keeps nothing if the suite fails", i+1)
	}
}

var stopped = regexp.MustCompile(`(?s)\A::stop-commands::([0-9a-f]{64})\n(.*)\n::([0-9a-f]{64})::\n\z`)

// The action runs shards, and the workflow's last job makes one report of what they leave.
func TestGitHubShards(t *testing.T) {
	t.Parallel()
	testenv.Tool(t, "jq")
	workflow := load[struct {
		Jobs map[string]struct{ Steps []step }
	}](t, configs(t, "ci/github/workflow.yaml"))[0]
	merge := &github{dir: t.TempDir(), steps: workflow.Jobs["verdict"].Steps}
	merge.env = environ(t, "GITHUB_STEP_SUMMARY="+filepath.Join(merge.dir, "summary"))
	for i := 1; i <= shards; i++ {
		g := action(t, map[string]string{"suite": configs(t, "suite.yaml"), "shard": fmt.Sprintf("%d/%d", i, shards),
			"results": filepath.Join(merge.dir, "shards", fmt.Sprintf("ktstr-shard-%d", i))})
		ran, shown, code := g.suite(t)
		m := stopped.FindStringSubmatch(ran)
		if code != 0 || shown != "" || g.file("summary") != "" || m == nil || m[1] != m[3] {
			t.Errorf("exit code %d, summary %q, shown:\n%s\nprinted:\n%s", code, g.file("summary"), shown, ran)
		}
	}
	out, code := merge.do(t, "Merge")
	summary := merge.file("summary")
	if code != 0 || !strings.HasPrefix(summary, "### first: 8 passed in ") {
		t.Errorf("exit code %d, summary %q\n%s", code, summary, out)
	}
	equalsWhole(t, filepath.Join(merge.dir, "ktstr-results"), folders(t, filepath.Join(merge.dir, "shards", "*"))...)

	// The next one is compared with this one, and has lost a shard. What a guest says is no command.
	evil(t, filepath.Join(merge.dir, "shards", "ktstr-shard-1"))
	if err := os.RemoveAll(filepath.Join(merge.dir, "shards", "ktstr-shard-2")); err != nil {
		t.Fatal(err)
	}
	out, code = merge.do(t, "Merge")
	summary = strings.TrimPrefix(merge.file("summary"), summary)
	if code != 1 || !strings.HasPrefix(summary, "### first: 5 passed, 1 failed, 2 lost in ") ||
		!strings.Contains(summary, "no shard has it") || strings.Count(summary, "### ") < 2 {
		t.Errorf("exit code %d, summary %q\n%s", code, summary, out)
	}
	if m := stopped.FindStringSubmatch(out); m == nil || m[1] != m[3] || !strings.Contains(m[2], "##[error]pwned") {
		t.Errorf("the runner would obey\n%s", out)
	}

	// If a single artifact is left, it comes without its folder.
	for _, err := range []error{
		os.Rename(filepath.Join(merge.dir, "shards"), filepath.Join(merge.dir, "all")),
		os.Rename(filepath.Join(merge.dir, "all", "ktstr-shard-3"), filepath.Join(merge.dir, "shards")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, code := merge.do(t, "Merge"); code != 1 || !strings.Contains(out, "first: 2 passed, 6 lost in ") {
		t.Errorf("with one shard: exit code %d\n%s", code, out)
	}
	if err := os.RemoveAll(filepath.Join(merge.dir, "shards")); err != nil {
		t.Fatal(err)
	}
	if out, code := merge.do(t, "Merge"); code != 125 {
		t.Errorf("with no shard at all: exit code %d\n%s", code, out)
	}
}

// evil makes the first run of a shard one that failed, with commands of the runner's at the end of its console.
func evil(t *testing.T, dir string) {
	t.Helper()
	r := report(t, dir)
	r.Runs[0].Status, r.Runs[0].Tail = suite.Failed, []string{"##[error]pwned", "::error::pwned", "::stop-commands::x"}
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "suite.json"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

var annotation = regexp.MustCompile(`\A::(error|warning) title=([^:,\n]*)::(.*)\z`)

// unescaped is what the runner makes of a part of a command.
func unescaped(s string) string {
	return strings.NewReplacer("%25", "%", "%0A", "\n", "%0D", "\r", "%3A", ":", "%2C", ",").Replace(s)
}

// What fails is an error, what is flaky a warning, at most ten of each; whatever a guest or a name says, a line is one
// command, of ours.
func TestGitHubAnnotations(t *testing.T) {
	t.Parallel()
	testenv.Tool(t, "jq")
	file := write(t, "suite.yaml", `name: mixed
defaults: {memory: 64M, shm-size: 64K, arch: x86_64}
runs:
- {name: good, scenario: ok}
- {name: "100%, ::error::x", scenario: fail}
- {name: boom, scenario: crash}
- {name: loses, scenario: "flood,count=10"}
- {name: unasked, scenario: fail}
`)
	g := action(t, map[string]string{"suite": file, "arguments": "--jobs 2\n--filter ^[^u]"})
	ran, shown, code := g.suite(t)
	if code != 1 || !stopped.MatchString(ran) {
		t.Errorf("exit code %d\n%s", code, ran)
	}
	var titles []string
	for line := range strings.Lines(shown) {
		m := annotation.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || m[1] != "error" || !strings.HasPrefix(m[3], "failed: expected exited, got ") {
			t.Fatalf("%q", line)
		}
		titles = append(titles, unescaped(m[2]))
	}
	if got := strings.Join(titles, "; "); got != "100%, ::error::x; boom" {
		t.Errorf("errors for %s\n%s", got, shown)
	}
	if !strings.Contains(shown, "got crash, code 122: the guest crashed: panic: ") {
		t.Errorf("no reason in\n%s", shown)
	}
	if s := g.file("summary"); !strings.HasPrefix(s, "### mixed: 2 passed, 2 failed in ") ||
		!strings.Contains(s, "| failed | boom |") {
		t.Errorf("summary %q", s)
	}

	// The same with what a guest may make of it.
	const evil = "50%\n::error::pwned\r\n##[error]pwned\x1b[2J,:\x00%0A::add-mask::a"
	r := report(t, filepath.Join(g.dir, "ktstr-results"))
	bad := r.Runs[2]
	bad.Reason, bad.Tail = evil, []string{evil, "::stop-commands::x"}
	again := *bad
	again.Status, again.Earlier = suite.Flaky, []suite.Attempt{bad.Attempt}
	lost := *bad
	lost.Name, lost.Status, lost.ExitCode, lost.Outcome = evil, suite.Lost, nil, ""
	r.Runs = append(r.Runs[:0], &lost)
	for range 20 {
		r.Runs = append(r.Runs, bad, &again)
	}
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(g.dir, "ktstr-results", "suite.json"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if shown, code = g.do(t, "Show what failed"); code != 0 {
		t.Fatalf("exit code %d\n%s", code, shown)
	}
	visible := strings.NewReplacer("\r", "?", "\x1b", "?", "\x00", "?").Replace(evil)
	counts := map[string]int{}
	for i, line := range strings.Split(strings.TrimSuffix(shown, "\n"), "\n") {
		m := annotation.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line %d: %q", i+1, line)
		}
		counts[m[1]]++
		if got := unescaped(m[3]); !strings.HasSuffix(got, visible+"\n"+visible+"\n::stop-commands::x") {
			t.Errorf("line %d says %q", i+1, got)
		}
		if got := unescaped(m[2]); i == 0 && got != visible {
			t.Errorf("title %q", got)
		}
	}
	if counts["error"] != 10 || counts["warning"] != 10 {
		t.Errorf("%v, want ten of each", counts)
	}
}

// A workflow that is cancelled signals the step's shell alone; the suite ends in good order.
func TestGitHubCancel(t *testing.T) {
	t.Parallel()
	file := write(t, "suite.yaml", strings.ReplaceAll(hangs, "hangs", "cancelled"))
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		g := action(t, map[string]string{"suite": file, "arguments": "--jobs 4"})
		s := g.start(t, "Run the suite")
		dir := filepath.Join(g.dir, "ktstr-results")
		eventually(t, "all guests run", func() bool { return running(t, dir) == shards })
		if err := s.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		out, code := s.end(t)
		if code != 0 || !stopped.MatchString(out) || g.file("output") != "exit-code=143\n" {
			t.Errorf("%v: exit code %d, output %q\n%s", sig, code, g.file("output"), out)
		}
		interrupted(t, dir, true)
	}
}
