package initramfs

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrLibrary is a library or an interpreter that a program needs and that is not there, for errors.Is.
var ErrLibrary = errors.New("is not found")

// ErrForeign is a program of another architecture than the guest's, for errors.Is.
var ErrForeign = errors.New("is a program for another architecture")

// A folder of the host's that stands for a root. Paths in it begin at that root, and so do its links.
type root string

const hostRoot root = "/"

func (r root) file(path string) string { return filepath.Join(string(r), path) }

// real is a path in the root with all links followed.
func (r root) real(path string) (string, error) {
	real, err := resolve(inside(path), func(path string) (string, bool) {
		target, err := os.Readlink(r.file("/" + path))
		return target, err == nil
	})
	if err != nil {
		return "", err
	}
	_, err = os.Lstat(r.file("/" + real))
	return "/" + real, err
}

// library is a program or a library by the path at which a loader finds it.
type library struct {
	*object
	root   root
	path   string // with links
	real   string // without
	by     *library
	cached bool // it was found by the loader's cache
}

// finder finds what a program needs, as its loader does: ld.so(8) and, for musl, its ldso/dynlink.c. Of the
// environment it knows LD_LIBRARY_PATH.
type finder struct {
	system  root
	program *library
	path    string // LD_LIBRARY_PATH
	dir     string // where the program is started; "": this process's folder
	loader  *library
	musl    string              // the loader's architecture, where it is musl's
	cache   map[string][]string // the loader's cache: paths by name
	found   map[string]*library // by all of their names
	all     []*library
}

// libraries returns the loader and the libraries of a program that is started in dir with path as its
// LD_LIBRARY_PATH.
func libraries(system root, program *library, path, dir string) ([]*library, error) {
	f := &finder{system: system, program: program, path: path, dir: dir, found: map[string]*library{}}
	loader, err := f.open(system, program.interp, program)
	if err != nil {
		return nil, fmt.Errorf("its interpreter %s %w: %w", f.system.file(program.interp), ErrLibrary, err)
	}
	f.loader = loader
	if name, ok := strings.CutPrefix(filepath.Base(program.interp), "ld-musl-"); ok {
		f.musl, _, _ = strings.Cut(name, ".so")
	} else {
		f.cache = readCache(system.file("/etc/ld.so.cache"))
	}
	f.add(program.interp, loader)
	for queue := []*library{program, loader}; len(queue) > 0; queue = queue[1:] {
		for _, name := range queue[0].needed {
			if f.found[name] != nil || f.isLoader(name) {
				continue
			}
			lib, err := f.find(name, queue[0])
			if err != nil {
				return nil, err
			}
			if f.add(name, lib) {
				queue = append(queue, lib)
			}
			if len(f.all) > maxNeeded {
				return nil, fmt.Errorf("it needs more than %d libraries", maxNeeded)
			}
		}
	}
	return f.all, nil
}

// add makes a library known by its names and reports whether it is new.
func (f *finder) add(name string, lib *library) bool {
	names := []string{name, filepath.Base(lib.path), lib.soname}
	known := slices.ContainsFunc(f.all, func(l *library) bool { return l.root == lib.root && l.path == lib.path })
	if !known {
		f.all = append(f.all, lib)
	}
	for _, n := range names {
		if n != "" && f.found[n] == nil {
			f.found[n] = lib
		}
	}
	return !known
}

// isLoader reports whether a name is one of those that musl's loader answers to itself.
func (f *finder) isLoader(name string) bool {
	name, ok := strings.CutPrefix(name, "lib")
	name, _, _ = strings.Cut(name, ".")
	return ok && f.musl != "" && slices.Contains([]string{"c", "pthread", "rt", "m", "dl", "util", "xnet"}, name)
}

// candidate is where a library may be.
type candidate struct {
	root   root
	path   string
	cached bool
}

// find finds what a library needs.
func (f *finder) find(name string, by *library) (*library, error) {
	var reason error
	var tried []string
	for _, c := range f.candidates(name, by) {
		lib, err := f.open(c.root, c.path, by)
		if err == nil {
			lib.cached = c.cached
			return lib, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			reason = errors.Join(reason, fmt.Errorf("%s: %w", c.root.file(c.path), err))
		}
		if dir := filepath.Dir(c.root.file(c.path)); !slices.Contains(tried, dir) {
			tried = append(tried, dir)
		}
	}
	err := fmt.Errorf("%s, which %s needs, %w in %s", name, by.root.file(by.path), ErrLibrary, strings.Join(tried, ", "))
	if reason != nil {
		err = fmt.Errorf("%w: %w", err, reason)
	}
	return nil, err
}

// open opens a library if it is one for the program.
func (f *finder) open(in root, path string, by *library) (*library, error) {
	real, err := in.real(path)
	if err != nil {
		return nil, err
	}
	o, err := openObject(in.file(real))
	if err != nil {
		return nil, err
	}
	if o.abi != f.program.abi {
		return nil, fmt.Errorf("it is for %v, %v", o.machine, o.class)
	}
	return &library{object: o, root: in, path: filepath.Clean("/" + path), real: real, by: by}, nil
}

func openObject(path string) (*object, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a named pipe would wait for somebody who writes
		return nil, fmt.Errorf("it is no plain file but %s", kind(info.Mode()))
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readObject(file)
}

// candidates are the places where a loader looks for a name, in its order.
func (f *finder) candidates(name string, by *library) []candidate {
	if strings.Contains(name, "/") {
		return f.in("", name, by)
	}
	var all []candidate
	for l := range f.chain(by) {
		for dir := range strings.SplitSeq(f.inherited(l, by), ":") {
			all = append(all, f.in(dir, name, l)...)
		}
	}
	if f.musl != "" { // LD_LIBRARY_PATH comes first
		return slices.Concat(f.given(name), all, f.defaults(f.muslFolders(), name))
	}
	all = append(all, f.given(name)...)
	for dir := range strings.SplitSeq(by.runpath, ":") {
		all = append(all, f.in(dir, name, by)...)
	}
	folders := f.program.defaultFolders()
	for _, path := range f.cache[name] {
		if !by.noDefault || !slices.Contains(folders, filepath.Dir(path)) {
			all = append(all, candidate{f.system, path, true})
		}
	}
	if by.noDefault {
		return all
	}
	return append(all, f.defaults(folders, name)...)
}

// chain yields a library, what needs it, and so on.
func (f *finder) chain(by *library) func(yield func(*library) bool) {
	return func(yield func(*library) bool) {
		for l := by; l != nil; l = l.by {
			if !yield(l) {
				return
			}
		}
	}
}

// inherited is where a library says that something is looked for which another one needs: the older RPATH,
// that a RUNPATH turns off. musl takes both for the same.
func (f *finder) inherited(l, by *library) string {
	switch {
	case f.musl != "" && l.runpath != "":
		return l.runpath
	case f.musl == "" && (l.runpath != "" || by.runpath != ""):
		return ""
	}
	return l.rpath
}

// given is a name in the folders of LD_LIBRARY_PATH. To musl they are plain, to glibc an empty one is that in
// which the program is started, and $ORIGIN is the program's.
func (f *finder) given(name string) []candidate {
	if f.path == "" {
		return nil
	}
	separator := ";" // besides the colon
	if f.musl != "" {
		separator = "\n"
	}
	var all []candidate
	for dir := range strings.SplitSeq(strings.ReplaceAll(f.path, separator, ":"), ":") {
		switch {
		case f.musl == "":
			all = append(all, f.in(cmp.Or(dir, "."), name, f.program)...)
		case dir != "":
			all = append(all, candidate{root: f.system, path: f.abs(dir + "/" + name)})
		}
	}
	return all
}

// abs is a path as the program sees it where it is started.
func (f *finder) abs(path string) string {
	if f.dir != "" && !filepath.IsAbs(path) {
		path = f.dir + "/" + path
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path // this process's folder is gone, and nothing is in it
}

// in is a name in a folder that a library names. What is beside the library is in its root, the rest in the
// system's.
func (f *finder) in(dir, name string, l *library) []candidate {
	path := name
	if dir != "" {
		path = dir + "/" + name
	} else if !strings.Contains(name, "/") {
		return nil
	}
	where := f.system
	if strings.Contains(path, "$ORIGIN") || strings.Contains(path, "${ORIGIN}") {
		where = l.root
	}
	var all []candidate
	for _, p := range l.expand(path, l.origin()) {
		all = append(all, candidate{root: where, path: f.abs(p)})
	}
	return all
}

// origin is $ORIGIN: of a program it is without links, as /proc/self/exe has it.
func (l *library) origin() string {
	if l.by == nil {
		return filepath.Dir(l.real)
	}
	return filepath.Dir(l.path)
}

func (f *finder) defaults(folders []string, name string) []candidate {
	var all []candidate
	for _, dir := range folders {
		all = append(all, candidate{root: f.system, path: filepath.Join(dir, name)})
	}
	return all
}

// muslFolders are the folders of musl's file of paths, or its own.
func (f *finder) muslFolders() []string {
	text, err := readLimited(f.system.file("/etc/ld-musl-"+f.musl+".path"), maxSearchPath)
	if err != nil {
		return []string{"/lib", "/usr/local/lib", "/usr/lib"}
	}
	return strings.FieldsFunc(string(text), func(c rune) bool { return c == ':' || c == '\n' })
}

// readLimited reads a plain file of at most so many bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s: %s of %d bytes, at most %d are read", path, kind(info.Mode()), info.Size(), limit)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}

// multiarch are the folders in which Debian's loaders look, and $LIB in them; platforms is $PLATFORM.
var (
	multiarch = map[elf.Machine][]string{
		elf.EM_X86_64:  {"x86_64-linux-gnu"},
		elf.EM_386:     {"i386-linux-gnu"},
		elf.EM_AARCH64: {"aarch64-linux-gnu"},
		elf.EM_ARM:     {"arm-linux-gnueabihf", "arm-linux-gnueabi"},
		elf.EM_RISCV:   {"riscv64-linux-gnu"},
		elf.EM_PPC64:   {"powerpc64le-linux-gnu", "powerpc64-linux-gnu"},
		elf.EM_S390:    {"s390x-linux-gnu"},
	}
	platforms = map[elf.Machine]string{
		elf.EM_X86_64: "x86_64", elf.EM_386: "i686", elf.EM_AARCH64: "aarch64", elf.EM_ARM: "v7l",
	}
)

// libNames are what $LIB can be.
func (a abi) libNames() []string {
	var names []string
	for _, triplet := range multiarch[a.machine] {
		names = append(names, "lib/"+triplet)
	}
	if a.class == elf.ELFCLASS64 {
		return append(names, "lib64", "lib")
	}
	return append(names, "lib", "lib32")
}

// defaultFolders are where glibc's loaders look for everything: which of them a loader does look in is
// compiled into it, and a library for another one is not taken.
func (a abi) defaultFolders() []string {
	var folders []string
	for _, lib := range a.libNames() {
		folders = append(folders, "/"+lib, "/usr/"+lib)
	}
	return folders
}

const (
	cacheMagic = "glibc-ld.so.cache1.1"
	maxCache   = 64 << 20
)

// readCache reads glibc's cache of libraries. One that is not there, or that can't be read, is none: that is
// what a loader makes of it.
func readCache(path string) map[string][]string {
	b, err := readLimited(path, maxCache)
	if err != nil {
		return nil
	}
	return parseCache(b)
}

// parseCache parses it: struct cache_file_new and file_entry_new of glibc's sysdeps/generic/dl-cache.h. Entries
// for processors that have more than the least of their architecture are left out: the guest's may be another
// one than the host's, and all of them run the other libraries.
func parseCache(b []byte) map[string][]string {
	const headSize, entrySize = 48, 24
	if len(b) < headSize || string(b[:len(cacheMagic)]) != cacheMagic {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[28]&3 == 3 { // cache_file_new_flags_endian_big
		order = binary.BigEndian
	}
	cache := map[string][]string{}
	count, entries := int(order.Uint32(b[20:])), b[headSize:]
	for ; count > 0 && len(entries) >= entrySize; count-- {
		name, okName := cacheText(b, order.Uint32(entries[4:]))
		path, okPath := cacheText(b, order.Uint32(entries[8:]))
		if okName && okPath && order.Uint64(entries[16:]) == 0 {
			cache[name] = append(cache[name], path)
		}
		entries = entries[entrySize:]
	}
	return cache
}

// cacheText is the text at an offset in the cache.
func cacheText(b []byte, at uint32) (string, bool) {
	if uint64(at) >= uint64(len(b)) {
		return "", false
	}
	b = b[at:]
	s := text(b[:min(len(b), maxPath)])
	return s, s != "" && len(s) < maxPath
}
