package linux_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
)

// A kernel with its System.map, and no vmlinux, has symbols and no types. A map that only says where the real one is
// has none.
func TestSymbolsOfASystemMap(t *testing.T) {
	for name, tc := range map[string]struct {
		text []byte
		want error
		has  bool
	}{
		"a build's":  {kerneltest.Kernel{Arch: "x86_64"}.SystemMap(), introspect.ErrTypes, true},
		"a pointer":  {[]byte("ffffffffffffffff B The real System.map is elsewhere\n"), introspect.ErrSymbols, false},
		"there none": {nil, nil, false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "vmlinuz-6.12"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if tc.text != nil {
			if err := os.WriteFile(filepath.Join(dir, "System.map-6.12"), tc.text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		k, err := linux.Guest{Kernel: filepath.Join(dir, "vmlinuz-6.12")}.Symbols()
		if (k != nil) != tc.has || !strings.Contains(err.Error(), "there is no vmlinux beside the kernel") ||
			tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, %v", name, k != nil, err)
		}
	}
}
