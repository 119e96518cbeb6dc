//go:build linuxbed

package linux

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/guide"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// The guide is followed word by word, in the order of its steps.
func TestSchedExtGuide(t *testing.T) {
	t.Parallel()
	home, env := guideHome(t)
	if err := os.Symlink(vmm, filepath.Join(home, "bin", "ktstr-vmm")); err != nil {
		t.Fatal(err)
	}
	guide.Follow(t, filepath.Join("..", "..", "docs", "schedulers.md"), home, env, 5)
}

// So is the tutorial, which builds the program itself. Its first kernel is any; here it is that of its scheduler, too.
func TestSchedExtTutorial(t *testing.T) {
	t.Parallel()
	home, env := guideHome(t)
	if err := os.Symlink(kernel, filepath.Join(home, "vmlinuz")); err != nil {
		t.Fatal(err)
	}
	guide.Follow(t, filepath.Join("..", "..", "docs", "tutorial.md"), home, env, 7)
}

// guideHome is a home as the guides have it: this repository, a kernel with sched_ext, and a folder bin on PATH.
func guideHome(t *testing.T) (home string, env []string) {
	t.Helper()
	goTool := testenv.Tool(t, "go")
	home = t.TempDir()
	repository, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(home, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"ktstr-vmm": repository, "linux": kernel} {
		if err := os.Symlink(target, filepath.Join(home, name)); err != nil {
			t.Fatal(err)
		}
	}
	env = append(os.Environ(), "HOME="+home, "PATH="+bin+":"+os.Getenv("PATH"))
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		value, err := exec.Command(goTool, "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(value)))
	}
	return home, env
}
