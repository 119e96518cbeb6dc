package rundir_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/rundir"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// Sockets are in XDG_RUNTIME_DIR where that is a folder of this user's, and root's may be in /run, too.
func TestFolders(t *testing.T) {
	var always []string
	if os.Geteuid() == 0 {
		always = []string{"/run/ktstr-vmm"}
	}
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for set, want := range map[string]string{
		dir: dir + "/ktstr-vmm", link: link + "/ktstr-vmm", "": "", "run": "", file: "", dir + "/none": "",
	} {
		t.Setenv("XDG_RUNTIME_DIR", set)
		all := always
		if want != "" {
			all = append([]string{want}, always...)
		}
		if got := rundir.Folders(); !slices.Equal(got, all) {
			t.Errorf("%q: %q, not %q", set, got, all)
		}
	}
}

// A folder that root made in another user's XDG_RUNTIME_DIR would shut that user out.
func TestOthersFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", os.ErrPermission)
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if got := rundir.Folders(); !slices.Equal(got, []string{"/run/ktstr-vmm"}) {
		t.Errorf("%q", got)
	}
}
