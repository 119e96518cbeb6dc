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
	goTool := testenv.Tool(t, "go")
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
	guide.Follow(t, filepath.Join("..", "..", "docs", "schedulers.md"), home, env, 5)
}
