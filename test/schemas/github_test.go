package schemas

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rhysd/actionlint"
	"go.yaml.in/yaml/v3"
)

// action is an action's file, with all keys that it can have.
type action struct {
	Name, Description, Author string
	Inputs                    map[string]struct {
		Description, Default string
		Required             bool
		DeprecationMessage   string `yaml:"deprecationMessage"`
	}
	Outputs map[string]struct{ Description, Value string }
	Runs    struct {
		Using string
		Steps []struct {
			ID, Name, If, Uses, Run, Shell string
			WorkingDirectory               string `yaml:"working-directory"`
			ContinueOnError                string `yaml:"continue-on-error"`
			Env, With                      map[string]string
		}
	}
	Branding struct{ Icon, Color string }
}

// lint runs actionlint on a workflow in a repository that has our action where the workflow looks for it.
func lint(t *testing.T, workflow, action string) []string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, ".github", "workflows", "suite.yaml")
	for name, text := range map[string]string{
		path: workflow,
		filepath.Join(dir, ".github", "actions", "ktstr-vmm", "action.yml"): action,
		filepath.Join(dir, ".git", "HEAD"):                                  "ref: refs/heads/main\n",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	linter, err := actionlint.NewLinter(io.Discard, &actionlint.LinterOptions{WorkingDir: dir, Shellcheck: shellcheck(t)})
	if err != nil {
		t.Fatal(err)
	}
	project, err := actionlint.NewProject(dir)
	if err != nil {
		t.Fatal(err)
	}
	found, err := linter.LintFile(path, project)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range found {
		all = append(all, e.Error())
	}
	return all
}

// asWorkflow makes a workflow of an action: actionlint judges a workflow's steps, not an action's.
func asWorkflow(t *testing.T, text string) string {
	t.Helper()
	var a action
	decoder := yaml.NewDecoder(strings.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&a); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("on:\n  workflow_call:\n    inputs:\n")
	for name, input := range a.Inputs {
		if input.Description == "" || input.Required && input.Default != "" {
			t.Errorf("the input %s: %+v", name, input)
		}
		b.WriteString("      " + name + ": {type: string}\n")
	}
	b.WriteString("jobs:\n  action:\n    runs-on: ubuntu-24.04\n")
	_, steps, ok := strings.Cut(text, "  using: composite\n")
	if !ok || len(a.Runs.Steps) == 0 {
		t.Fatal("no composite action")
	}
	for _, s := range a.Runs.Steps {
		if s.Run != "" && (s.Shell != "bash" || strings.Contains(s.Run, "${{")) {
			t.Errorf("the step %q: shell %q, and what others write may become a part of its script:\n%s", s.Name, s.Shell, s.Run)
		}
	}
	for line := range strings.Lines(steps) {
		b.WriteString("  " + line)
	}
	return b.String()
}

// actionlint has nothing to say about the workflow and the action.
func TestGitHub(t *testing.T) {
	workflow, text := config(t, "ci/github/workflow.yaml"), config(t, "ci/github/action.yml")
	for _, w := range []string{workflow, asWorkflow(t, text)} {
		if found := lint(t, w, text); len(found) > 0 {
			t.Errorf("%s\n%s", strings.Join(found, "\n"), w)
		}
	}
	for old, wrong := range map[string]string{
		"          suite: suite.yaml": "          suit: suite.yaml",
		"matrix.shard }}/":            "matrix.shart }}/",
		"needs: shard":                "needs: shards",
		"fail-fast: false":            "fail-fat: false",
		`>>"$GITHUB_STEP_SUMMARY"`:    `>>$GITHUB_STEP_SUMMARY`,
		"          key: ktstr-suite-": "          keys: ktstr-suite-",
	} {
		bad := strings.Replace(workflow, old, wrong, 1)
		found := lint(t, bad, text)
		if bad == workflow || !slices.ContainsFunc(found, func(e string) bool { return strings.Contains(e, "suite.yaml") }) {
			t.Errorf("%q is taken: %q", wrong, found)
		}
	}
	bad := strings.Replace(asWorkflow(t, text), "inputs.kernels-key", "inputs.kernel-key", 1)
	if len(lint(t, bad, text)) == 0 {
		t.Error("an input that is not there is taken")
	}
}
