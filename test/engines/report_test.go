package engines

import (
	"path/filepath"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/guide"
)

// docs/report.md is followed word by word.
func TestReportGuide(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	guide.Follow(t, filepath.Join("..", "..", "docs", "report.md"), home, environ(t, "HOME="+home), 4)
}
