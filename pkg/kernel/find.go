package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Files are the paths of what there is of one kernel; "" is what there is not.
type Files struct {
	Image     string // what is booted
	Vmlinux   string // the ELF file that has its symbols and, with BTF, its types
	SystemMap string // its System.map
	Config    string // what it was configured with
	Modules   string // the folder below which its modules are: a build tree, or lib/modules/RELEASE
}

// What Find can't decide, for errors.Is.
var (
	ErrNotFound  = errors.New("there is no kernel")
	ErrAmbiguous = errors.New("there are several kernels; name the file of one")
)

// images are where kernels are below a folder: of the groups, the first of which something is there counts. What a
// build tree boots is Linux's KBUILD_IMAGE; packages of distributions differ.
var images = [][]string{
	{"arch/x86/boot/bzImage", "arch/arm64/boot/Image"}, {"arch/arm64/boot/Image.gz"}, {"vmlinux"},
	{"boot/vmlinuz-*"}, {"lib/modules/*/vmlinuz"}, {"usr/lib/modules/*/vmlinuz"},
}

// Find returns the files of the kernel at a path. A folder is a build tree, also one that make O= built, or an unpacked
// package of one kernel: it fails with ErrNotFound or ErrAmbiguous if it has none or several. A file is a kernel's
// image itself, and what belongs to it is found if it is where a build or a package puts it.
func Find(path string) (Files, error) {
	f, err := os.Open(path)
	if err != nil {
		return Files{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Files{}, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil { // what belongs to a file is beside it, not beside a link
		return Files{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return Files{}, err
	}
	if !info.IsDir() {
		return filesOf(path), nil
	}
	for _, patterns := range images {
		var found []string
		for _, pattern := range patterns {
			names, err := fs.Glob(os.DirFS(path), pattern)
			if err != nil {
				return Files{}, err
			}
			found = append(found, names...)
		}
		switch {
		case len(found) > 1:
			return Files{}, fmt.Errorf("%w: %s", ErrAmbiguous, strings.Join(found, ", "))
		case len(found) == 1:
			return filesOf(filepath.Join(path, found[0])), nil
		}
	}
	return Files{}, fmt.Errorf("%w: it has none of %s", ErrNotFound, strings.Join(slices.Concat(images...), ", "))
}

// filesOf returns the files that belong to an image.
func filesOf(image string) Files {
	for _, built := range slices.Concat(images[:3]...) {
		if tree, ok := strings.CutSuffix(image, "/"+built); ok {
			return builtFiles(tree, image)
		}
	}
	files := Files{Image: image}
	dir, name := filepath.Dir(image), filepath.Base(image)
	switch release, ok := strings.CutPrefix(name, "vmlinuz-"); {
	case ok:
		root := filepath.Dir(dir)
		files.Config = first(filepath.Join(dir, "config-"+release))
		files.SystemMap = first(filepath.Join(dir, "System.map-"+release))
		files.Modules = first(filepath.Join(root, "lib/modules", release), filepath.Join(root, "usr/lib/modules", release))
		files.Vmlinux = first(filepath.Join(root, "usr/lib/debug/boot/vmlinux-"+release),
			filepath.Join(root, "usr/lib/debug/lib/modules", release, "vmlinux"))
	case name == "vmlinuz" && first(filepath.Join(dir, "kernel")) != "": // dir is lib/modules/RELEASE
		files.Config, files.Modules = first(filepath.Join(dir, "config")), dir
		files.SystemMap = first(filepath.Join(dir, "System.map"))
	case isELF(image):
		files.Vmlinux = image
	}
	return files
}

// builtFiles returns the files of a build tree. Every build that has modules lists them in modules.order.
func builtFiles(tree, image string) Files {
	files := Files{
		Image:     image,
		Vmlinux:   first(filepath.Join(tree, "vmlinux")),
		SystemMap: first(filepath.Join(tree, "System.map")),
		Config:    first(filepath.Join(tree, ".config")),
	}
	if first(filepath.Join(tree, "modules.order")) != "" {
		files.Modules = tree
	}
	return files
}

// first returns the first path at which there is something, or "".
func first(paths ...string) string {
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && bytes.Equal(magic[:], []byte("\x7fELF"))
}
