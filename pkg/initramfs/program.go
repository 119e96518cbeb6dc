package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// AddProgram adds a program at its own path, with its interpreter and its libraries. An ELF file's headers, or a
// script's first line, say which; nothing is executed to find out. If a path leads through links, the file is at the
// same place as on the host, and the path is a link to it.
//
// A library that is not there is ErrLibrary, an ELF program that is not for Arch is ErrForeign. In a Sysroot the
// program is looked for first, then on the host.
func (a *Archive) AddProgram(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return cantPut(path, err)
	}
	if a.Sysroot != "" {
		if _, err := a.system().real(path); err == nil {
			return a.addProgram(a.system(), path, 0)
		}
	}
	return a.addProgram(hostRoot, path, 0)
}

// system is where interpreters and libraries are.
func (a *Archive) system() root {
	if a.Sysroot != "" {
		return root(a.Sysroot)
	}
	return hostRoot
}

func (a *Archive) addProgram(in root, path string, depth int) error {
	if depth > 4 { // as the kernel's own limit for scripts
		return cantPut(in.file(path), errors.New("too many interpreters"))
	}
	real, err := in.real(path)
	if err != nil {
		return cantPut(in.file(path), err)
	}
	if err := a.addFound(in, path, real); err != nil {
		return err
	}
	interpreter, program, err := shebang(in.file(real))
	if err != nil {
		return cantPut(in.file(path), err)
	}
	if interpreter == "" {
		return a.addLibraries(&library{root: in, path: path, real: real})
	}
	if program != "" {
		if found, err := a.LookPath(program); err == nil {
			if err := a.addProgram(a.system(), found, depth+1); err != nil {
				return err
			}
		}
	}
	return a.addProgram(a.system(), interpreter, depth+1)
}

// addFound adds a file in its real place, and its path as a link to it.
func (a *Archive) addFound(in root, path, real string) error {
	if err := a.AddFile(in.file(real), real); err != nil {
		return err
	}
	if inside(path) != inside(real) {
		a.put(entry{Record: cpio.Symlink(inside(path), real), weak: true})
	}
	return nil
}

// AddLibraries adds the interpreter and the libraries of a program of the host, which itself is added by AddTree. They
// are looked up as AddProgram looks them up. If they are not there, they are left out, for something else may bring
// them: see LeftOut. What is no dynamic ELF program for Arch needs none.
func (a *Archive) AddLibraries(path string) error {
	real, err := hostRoot.real(path)
	if err != nil {
		return cantPut(path, err)
	}
	program := &library{root: hostRoot, path: path, real: real}
	libs, err := a.needs(program)
	switch {
	case errors.Is(err, ErrForeign):
		return nil
	case err != nil:
		a.leftOut = append(a.leftOut, fmt.Sprintf("the libraries of %q: %v", path, err))
		return nil
	}
	return a.addNeeded(program, libs)
}

// addLibraries adds what a program needs.
func (a *Archive) addLibraries(program *library) error {
	libs, err := a.needs(program)
	if err != nil {
		return cantPut(program.root.file(program.path), err)
	}
	return a.addNeeded(program, libs)
}

// needs returns what a dynamic ELF program needs, its interpreter first. What any other file is, the guest's kernel
// will say.
func (a *Archive) needs(program *library) ([]*library, error) {
	o, err := openObject(program.root.file(program.real))
	if errors.Is(err, errNotELF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if runs, ok := runsOn[a.Arch]; ok && !slices.Contains(runs, o.machine) {
		return nil, fmt.Errorf("it %w: for %v, and the guest is %s", ErrForeign, o.machine, a.Arch)
	}
	if o.interp == "" {
		return nil, nil
	}
	program.object = o
	return libraries(a.system(), program, a.LibraryPath, a.Dir)
}

func (a *Archive) addNeeded(program *library, libs []*library) error {
	for _, lib := range libs {
		if err := a.addFound(lib.root, lib.path, lib.real); err != nil {
			return err
		}
	}
	if len(libs) > 0 {
		a.linkCached(program, libs)
	}
	return nil
}

// linkCached makes libraries that only the loader's cache knows found without it: the guest has none of these
// libraries' in its own. They get a link in the folder of a library that is found by default.
func (a *Archive) linkCached(program *library, libs []*library) {
	folders := program.defaultFolders()
	byDefault := func(l *library) bool { return slices.Contains(folders, filepath.Dir(l.path)) }
	i := slices.IndexFunc(libs[1:], byDefault) // the first is the loader
	for _, lib := range libs {
		if lib.cached && !byDefault(lib) && i >= 0 {
			link := filepath.Join(filepath.Dir(libs[1+i].path), filepath.Base(lib.path))
			a.put(entry{Record: cpio.Symlink(inside(link), lib.real), weak: true})
		}
	}
}

// runsOn are the machines whose programs a guest of an architecture runs.
var runsOn = map[string][]elf.Machine{
	"x86_64": {elf.EM_X86_64, elf.EM_386},
	"arm64":  {elf.EM_AARCH64, elf.EM_ARM},
}

// shebang reads a script's first line as fs/binfmt_script.c does: an interpreter and, where that is env, the
// program that it looks for.
func shebang(path string) (interpreter, program string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	head := make([]byte, 256) // BINPRM_BUF_SIZE
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", "", err
	}
	line, ok := strings.CutPrefix(string(head[:n]), "#!")
	if !ok {
		return "", "", nil
	}
	line, _, _ = strings.Cut(line, "\n")
	words := strings.FieldsFunc(line, func(c rune) bool { return c == ' ' || c == '\t' || c == 0 })
	if len(words) == 0 {
		return "", "", nil
	}
	if filepath.Base(words[0]) == "env" {
		for _, w := range words[1:] { // env -S splits its argument and takes options and variables
			if w = strings.TrimPrefix(w, "-S"); w != "" && w[0] != '-' && !strings.Contains(w, "=") {
				return words[0], w, nil
			}
		}
	}
	return words[0], "", nil
}

// LookPath finds a program as a shell does, and returns its absolute path.
func LookPath(name string) (string, error) {
	return lookPath(hostRoot, name)
}

// LookPath is like the function LookPath, but looks in the Sysroot first.
func (a *Archive) LookPath(name string) (string, error) {
	if a.Sysroot != "" {
		if path, err := lookPath(a.system(), name); err == nil {
			return path, nil
		}
	}
	return LookPath(name)
}

func lookPath(in root, name string) (string, error) {
	if strings.Contains(name, "/") {
		return filepath.Abs(name)
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		real, err := in.real(path)
		if err != nil {
			continue
		}
		info, err := os.Stat(in.file(real))
		if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w on PATH", name, fs.ErrNotExist)
}
