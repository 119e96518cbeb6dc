package kernel_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/kernel"
)

// tree makes files below a folder of its own, with their names as their content, and returns the folder.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFind(t *testing.T) {
	debian := []string{"boot/vmlinuz-6.1.0-1-amd64", "boot/config-6.1.0-1-amd64", "boot/System.map-6.1.0-1-amd64",
		"lib/modules/6.1.0-1-amd64/modules.order", "lib/modules/6.1.0-1-amd64/kernel/lib/a.ko.xz"}
	for name, tc := range map[string]struct {
		files []string
		path  string
		want  kernel.Files
	}{
		"build tree": {[]string{".config", "vmlinux", "System.map", "modules.order", "arch/x86/boot/bzImage"}, "",
			kernel.Files{Image: "arch/x86/boot/bzImage", Vmlinux: "vmlinux", SystemMap: "System.map",
				Config: ".config", Modules: "."}},
		"build tree without modules": {[]string{".config", "vmlinux", "arch/x86/boot/bzImage"}, "",
			kernel.Files{Image: "arch/x86/boot/bzImage", Vmlinux: "vmlinux", Config: ".config"}},
		"build tree with vmlinux alone": {[]string{".config", "vmlinux"}, "",
			kernel.Files{Image: "vmlinux", Vmlinux: "vmlinux", Config: ".config"}},
		"image alone, where it is built": {[]string{"arch/x86/boot/bzImage"}, "",
			kernel.Files{Image: "arch/x86/boot/bzImage"}},
		"arm64 build tree": {[]string{"vmlinux", "arch/arm64/boot/Image", "arch/arm64/boot/Image.gz"}, "",
			kernel.Files{Image: "arch/arm64/boot/Image", Vmlinux: "vmlinux"}},
		"arm64 build tree, packed": {[]string{"vmlinux", "arch/arm64/boot/Image.gz"}, "",
			kernel.Files{Image: "arch/arm64/boot/Image.gz", Vmlinux: "vmlinux"}},
		"the image in a build tree": {[]string{".config", "vmlinux", "arch/x86/boot/bzImage"}, "arch/x86/boot/bzImage",
			kernel.Files{Image: "arch/x86/boot/bzImage", Vmlinux: "vmlinux", Config: ".config"}},
		"Debian's package": {debian, "", kernel.Files{Image: debian[0], Config: debian[1],
			SystemMap: debian[2], Modules: "lib/modules/6.1.0-1-amd64"}},
		"Debian's package with symbols": {append(debian, "usr/lib/debug/boot/vmlinux-6.1.0-1-amd64"), "",
			kernel.Files{Image: debian[0], Config: debian[1], SystemMap: debian[2], Modules: "lib/modules/6.1.0-1-amd64",
				Vmlinux: "usr/lib/debug/boot/vmlinux-6.1.0-1-amd64"}},
		"one of a package's kernels": {append(debian, "boot/vmlinuz-7.0", "usr/lib/modules/7.0/modules.order"),
			"boot/vmlinuz-7.0", kernel.Files{Image: "boot/vmlinuz-7.0", Modules: "usr/lib/modules/7.0"}},
		"a package with all in one place": {[]string{"usr/lib/modules/7/vmlinuz", "usr/lib/modules/7/config",
			"usr/lib/modules/7/kernel/a.ko"}, "", kernel.Files{Image: "usr/lib/modules/7/vmlinuz",
			Config: "usr/lib/modules/7/config", Modules: "usr/lib/modules/7"}},
		"a file": {[]string{"Image", "vmlinux"}, "Image", kernel.Files{Image: "Image"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, tc.files...)
			got, err := kernel.Find(filepath.Join(dir, tc.path))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range []*string{&got.Image, &got.Vmlinux, &got.SystemMap, &got.Config, &got.Modules} {
				if *path != "" {
					*path, _ = filepath.Rel(dir, *path)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The folder's own name is no pattern, and it may be relative.
func TestFindOddName(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(os.MkdirAll("a[b]*/boot", 0o755), os.WriteFile("a[b]*/boot/vmlinuz-1", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if got, err := kernel.Find("a[b]*"); err != nil || !strings.HasSuffix(got.Image, "/a[b]*/boot/vmlinuz-1") {
		t.Errorf("%v, %v", got, err)
	}
}

// An ELF file that is named has its own symbols.
func TestFindELF(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mine")
	if err := os.WriteFile(path, []byte("\x7fELF"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := kernel.Find(path); err != nil || got.Vmlinux != path {
		t.Errorf("%v, %v", got, err)
	}
}

func TestFindFails(t *testing.T) {
	for name, tc := range map[string]struct {
		files []string
		path  string
		is    error
		says  string
	}{
		"nothing":   {nil, "none", fs.ErrNotExist, "none"},
		"no kernel": {[]string{"README"}, "", kernel.ErrNotFound, "arch/x86/boot/bzImage"},
		"kernels": {[]string{"boot/vmlinuz-1", "boot/vmlinuz-2"}, "", kernel.ErrAmbiguous,
			"boot/vmlinuz-1, boot/vmlinuz-2"},
		"architectures": {[]string{"arch/x86/boot/bzImage", "arch/arm64/boot/Image"}, "", kernel.ErrAmbiguous, "arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := kernel.Find(filepath.Join(tree(t, tc.files...), tc.path))
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v", err)
			}
		})
	}
}
