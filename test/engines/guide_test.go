package engines

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/guide"
)

// docs/ci.md is followed word by word, as far as one machine goes.
func TestGuide(t *testing.T) {
	t.Parallel()
	repository, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	if err := os.Symlink(repository, filepath.Join(home, "ktstr-vmm")); err != nil {
		t.Fatal(err)
	}
	guide.Follow(t, filepath.Join(repository, "docs", "ci.md"), home, environ(t, "HOME="+home), 7)
}
