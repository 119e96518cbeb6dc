package engines

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// project makes a repository with our pipeline and a suite.
func project(t *testing.T, suite string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for to, from := range map[string]string{".gitlab-ci.yml": configs(t, "ci/gitlab/gitlab-ci.yml"), "suite.yaml": suite} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range []string{
		"init -q -b main", "add -A", "-c user.name=a -c user.email=a@example.com commit -q -m one",
		"remote add origin git@git.example.com:group/project.git",
	} {
		git := exec.Command("git", append([]string{"-C", dir}, strings.Fields(args)...)...)
		if out, err := git.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
	}
	return dir
}

// pipeline runs it, after gitlab-ci-local has judged it by GitLab's schema.
func pipeline(t *testing.T, dir string) (out string, code int) {
	t.Helper()
	env := environ(t, "HOME="+t.TempDir(), "CI=", "NO_COLOR=1")
	return command(t, env, dir, testenv.Tool(t, "gitlab-ci-local"), "--concurrency", "2").end(t)
}

// GitLab's jobs, merged by the last of them, are the suite.
func TestGitLab(t *testing.T) {
	if testing.Short() {
		t.Skip("in the long form")
	}
	t.Parallel()
	testenv.Tool(t, "rsync")
	dir := project(t, configs(t, "suite.yaml"))
	out, code := pipeline(t, dir)
	if code != 0 || !strings.Contains(out, "schema validated") || !strings.Contains(out, "first: 8 passed in ") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	equalsWhole(t, filepath.Join(dir, "ktstr-results"), folders(t, filepath.Join(dir, "ktstr-shards", "*"))...)
	if _, err := os.Stat(filepath.Join(dir, "ktstr-results", "suite.xml")); err != nil {
		t.Error(err)
	}
}

// A shard that fails does not keep the report from being made; a key that GitLab does not know is seen.
func TestGitLabFailure(t *testing.T) {
	if testing.Short() {
		t.Skip("in the long form")
	}
	t.Parallel()
	dir := project(t, write(t, "suite.yaml", `name: mixed
defaults: {memory: 64M, shm-size: 64K, arch: x86_64}
runs: [{scenario: ok}, {scenario: fail}]
`))
	out, code := pipeline(t, dir)
	if code == 0 || !strings.Contains(out, "mixed: 1 passed, 1 failed in ") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	path := filepath.Join(dir, ".gitlab-ci.yml")
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(strings.Replace(string(text), "parallel: 4", "paralel: 4", 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, code := pipeline(t, dir); code == 0 || !strings.Contains(out, "paralel") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
