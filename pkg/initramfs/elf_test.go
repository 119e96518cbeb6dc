package initramfs_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

// program is an ELF file of just what a loader looks at.
type program struct {
	machine                elf.Machine // 0: x86_64
	is32                   bool
	interp                 string
	needed                 []string
	soname, rpath, runpath string
	flags                  elf.DynFlag1
}

// elf is the file: header, program headers, interpreter, names, dynamic segment.
func (p program) elf() []byte {
	if p.machine == 0 {
		p.machine = elf.EM_X86_64
	}
	le, word, head, each, class := binary.LittleEndian, 8, 64, 56, elf.ELFCLASS64
	if p.is32 {
		word, head, each, class = 4, 52, 32, elf.ELFCLASS32
	}
	const count = 3
	b := make([]byte, head+count*each)
	interpAt := len(b)
	b = append(b, p.interp+"\x00"...)
	namesAt := len(b)
	b = append(b, 0)
	type tag struct{ tag, value uint64 }
	var tags []tag
	name := func(t elf.DynTag, s string) {
		if s != "" {
			tags = append(tags, tag{uint64(t), uint64(len(b) - namesAt)})
			b = append(b, s+"\x00"...)
		}
	}
	for _, n := range p.needed {
		name(elf.DT_NEEDED, n)
	}
	name(elf.DT_SONAME, p.soname)
	name(elf.DT_RPATH, p.rpath)
	name(elf.DT_RUNPATH, p.runpath)
	const base = 0x10000 // of the addresses
	tags = append(tags, tag{uint64(elf.DT_STRTAB), base + uint64(namesAt)},
		tag{uint64(elf.DT_STRSZ), uint64(len(b) - namesAt)},
		tag{uint64(elf.DT_FLAGS_1), uint64(p.flags)}, tag{})
	dynamicAt := len(b)
	put := func(at int, v uint64) {
		if word == 4 {
			le.PutUint32(b[at:], uint32(v))
		} else {
			le.PutUint64(b[at:], v)
		}
	}
	for _, t := range tags {
		b = append(b, make([]byte, 2*word)...)
		put(len(b)-2*word, t.tag)
		put(len(b)-word, t.value)
	}
	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(class), byte(elf.ELFDATA2LSB), 1
	le.PutUint16(b[18:], uint16(p.machine))
	put(24+word, uint64(head))
	le.PutUint16(b[head-10:], uint16(each))
	segments := []struct {
		kind     elf.ProgType
		at, size int
	}{{elf.PT_LOAD, 0, len(b)}, {elf.PT_DYNAMIC, dynamicAt, len(b) - dynamicAt}, {elf.PT_INTERP,
		interpAt, len(p.interp) + 1}}
	if p.interp == "" {
		segments = segments[:2]
	}
	le.PutUint16(b[head-8:], uint16(len(segments)))
	for i, s := range segments {
		at := head + i*each
		le.PutUint32(b[at:], uint32(s.kind))
		offset := at + word // after p_type and, with 64 bits, p_flags
		put(offset, uint64(s.at))
		put(offset+word, base+uint64(s.at))
		put(offset+3*word, uint64(s.size))
	}
	return b
}

// loaderCache is glibc's cache of libraries, unsorted.
func loaderCache(libs map[string]string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 48+24*len(libs))
	copy(b, "glibc-ld.so.cache1.1")
	le.PutUint32(b[20:], uint32(len(libs)))
	for i, name := range slices.Sorted(maps.Keys(libs)) {
		le.PutUint32(b[48+24*i+4:], uint32(len(b)))
		b = append(b, name+"\x00"...)
		le.PutUint32(b[48+24*i+8:], uint32(len(b)))
		b = append(b, libs[name]+"\x00"...)
	}
	return b
}

// system makes a root of programs (by path), links ("-> target") and other files.
func system(t *testing.T, files map[string]any) string {
	t.Helper()
	root := t.TempDir()
	for name, what := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch w := what.(type) {
		case program:
			err = os.WriteFile(path, w.elf(), 0o755)
		case []byte:
			err = os.WriteFile(path, w, 0o755)
		case string:
			if target, ok := strings.CutPrefix(w, "-> "); ok {
				err = os.Symlink(target, path)
			} else {
				err = os.WriteFile(path, []byte(w), 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// Programs of this host come with the libraries that its own loader finds for them.
func TestLibrariesAreTheLoaders(t *testing.T) {
	checked := 0
	for _, path := range []string{
		"/bin/ls", "/bin/bash", "/bin/sh", "/bin/cp", "/bin/tar", "/bin/grep", "/usr/bin/gcc", "/usr/bin/as",
		"/usr/bin/ld", "/usr/bin/git",
		"/usr/bin/perl", "/usr/bin/curl", "/usr/bin/ssh", "/usr/bin/vim", "/usr/bin/make", "/usr/bin/xz", "/sbin/ldconfig",
	} {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			continue
		}
		file, err := elf.Open(real)
		if err != nil || file.Section(".interp") == nil {
			continue
		}
		interp, err := file.Section(".interp").Data()
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(string(bytes.TrimRight(interp, "\x00")), "--list", real).Output()
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		want := []string{inGuest(t, real), inGuest(t, string(bytes.TrimRight(interp, "\x00")))}
		for line := range strings.Lines(string(out)) {
			if words := strings.Fields(line); len(words) >= 3 && words[1] == "=>" {
				want = append(want, inGuest(t, words[2]))
			}
		}
		slices.Sort(want)
		want = slices.Compact(want)
		a := initramfs.New()
		if err := a.AddProgram(path); err != nil {
			t.Fatal(err)
		}
		_, records := archived(t, a)
		var got []string
		for name, r := range records {
			if r.Mode&cpio.S_IFMT == cpio.S_IFREG && name != cpio.Trailer {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n got %q\nwant %q", path, got, want)
		}
		checked++
	}
	if checked < 5 {
		t.Errorf("only %d programs were there to be compared", checked)
	}
}

func inGuest(t *testing.T, path string) string {
	t.Helper()
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(real, "/")
}

// Nothing of a program's is executed on the host, not even the interpreter that it names.
func TestNothingIsExecuted(t *testing.T) {
	dir := t.TempDir()
	marker, loader := filepath.Join(dir, "executed"), filepath.Join(dir, "loader")
	if err := os.WriteFile(loader, []byte("#!/bin/sh\ntouch "+marker+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "program")
	if err := os.WriteFile(path, program{interp: loader, needed: []string{"libc.so.6"}}.elf(), 0o755); err != nil {
		t.Fatal(err)
	}
	err := initramfs.New().AddProgram(path)
	if _, statErr := os.Stat(marker); statErr == nil {
		t.Error("the interpreter was executed")
	}
	if !errors.Is(err, initramfs.ErrLibrary) || !strings.Contains(err.Error(), loader) {
		t.Errorf("a script as a loader: %v", err)
	}
}

// Each place where a loader looks is looked at, in the loader's order, under the sysroot and nowhere else.
func TestLibrariesInSysroot(t *testing.T) {
	const arm = elf.EM_AARCH64
	loader, plain := "/lib/ld-linux-aarch64.so.1", program{machine: arm}
	prog := func(p program) program { p.machine, p.interp = arm, loader; return p }
	lib := func(p program) program { p.machine = arm; return p }
	wrong := program{machine: elf.EM_X86_64}
	for name, tc := range map[string]struct {
		files map[string]any
		want  []string
	}{
		"default folder": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}}), "usr/lib/l.so": plain},
			[]string{"usr/lib/l.so"}},
		"wrong machine": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}}), "lib64/l.so": wrong,
			"usr/lib/l.so": plain}, []string{"usr/lib/l.so"}},
		"transitive": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}}),
			"lib/l.so": lib(program{needed: []string{"m.so", "l.so"}}), "lib/m.so": lib(program{needed: []string{"l.so"}})},
			[]string{"lib/l.so", "lib/m.so"}},
		"runpath": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}, runpath: "/none:/opt/x"}),
			"lib/l.so": plain, "opt/x/l.so": plain}, []string{"opt/x/l.so"}},
		"origin": {map[string]any{"opt/p/bin/p": prog(program{needed: []string{"l.so"}, runpath: "$ORIGIN/../lib"}),
			"opt/p/lib/l.so": plain, "bin/p": "-> ../opt/p/bin/p"}, []string{"opt/p/bin/p", "opt/p/lib/l.so"}},
		"origin in braces": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}, rpath: "${ORIGIN}/${LIB}"}),
			"bin/lib64/l.so": plain}, []string{"bin/lib64/l.so"}},
		"rpath is inherited": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}, rpath: "/opt"}),
			"opt/l.so": lib(program{needed: []string{"m.so"}}), "opt/m.so": plain},
			[]string{"opt/l.so", "opt/m.so"}},
		"runpath turns rpath off": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}, rpath: "/opt",
			runpath: "/none"}), "opt/l.so": plain, "lib/l.so": plain}, []string{"lib/l.so"}},
		"cache": {map[string]any{"bin/p": prog(program{needed: []string{"l.so", "c.so"}}),
			"etc/ld.so.cache": loaderCache(map[string]string{"l.so": "/odd/l.so"}),
			"odd/l.so":        plain, "lib/c.so": plain}, []string{"odd/l.so", "lib/c.so"}},
		"stale cache": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}}),
			"etc/ld.so.cache": loaderCache(map[string]string{"l.so": "/odd/l.so"}), "lib/l.so": plain}, []string{"lib/l.so"}},
		"path": {map[string]any{"bin/p": prog(program{needed: []string{"/a/l.so"}}),
			"a/l.so": plain}, []string{"a/l.so"}},
		"absolute links": {map[string]any{"bin/p": prog(program{needed: []string{"l.so"}}),
			"usr/lib/l.so": "-> /usr/lib/l.so.1", "usr/lib/l.so.1": plain}, []string{"usr/lib/l.so.1"}},
		"soname": {map[string]any{"bin/p": prog(program{needed: []string{"l.so", "real.so"}}),
			"lib/l.so": lib(program{soname: "real.so"})}, []string{"lib/l.so"}},
		"loader itself": {map[string]any{"bin/p": prog(program{needed: []string{"ld-linux-aarch64.so.1"}})}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tc.files[loader] = plain
			a := initramfs.New()
			a.Arch, a.Sysroot = "arm64", system(t, tc.files)
			if err := a.AddProgram("/bin/p"); err != nil {
				t.Fatal(err)
			}
			_, records := archived(t, a)
			want := append(tc.want, "lib/ld-linux-aarch64.so.1")
			for name, r := range records {
				if r.Mode&cpio.S_IFMT == cpio.S_IFREG && name != "bin/p" && name != cpio.Trailer && !slices.Contains(want, name) {
					t.Errorf("%s is there", name)
				}
			}
			for _, name := range want {
				if r := records[name]; r.Mode&cpio.S_IFMT != cpio.S_IFREG {
					t.Errorf("no %s", name)
				}
			}
			if name == "cache" && content(t, records["lib/l.so"]) != "/odd/l.so" {
				t.Error("without its cache, the guest's loader does not find l.so")
			}
		})
	}
}

// musl's loader has folders of its own, and its own file of paths, and is the C library too.
func TestMusl(t *testing.T) {
	const loader = "lib/ld-musl-x86_64.so.1"
	for name, tc := range map[string]struct {
		files map[string]any
		want  string
	}{
		"default": {map[string]any{"usr/local/lib/l.so": program{}, "usr/lib/l.so": program{}}, "usr/local/lib/l.so"},
		"file": {map[string]any{"etc/ld-musl-x86_64.path": "/none\n/odd:/lib\n", "odd/l.so": program{},
			"usr/lib/l.so": program{}}, "odd/l.so"},
	} {
		tc.files[loader] = program{}
		tc.files["bin/p"] = program{interp: "/" + loader, needed: []string{"libc.musl-x86_64.so.1", "libm.so", "l.so"}}
		a := initramfs.New()
		a.Sysroot = system(t, tc.files)
		if err := a.AddProgram("/bin/p"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, records := archived(t, a); records[tc.want].Mode&cpio.S_IFMT != cpio.S_IFREG {
			t.Errorf("%s: no %s in %v", name, tc.want, records)
		}
	}
}

// musl's loader looks in LD_LIBRARY_PATH first, and knows no variables in it.
func TestMuslLibraryPath(t *testing.T) {
	const loader = "lib/ld-musl-x86_64.so.1"
	a := initramfs.New()
	a.Sysroot = system(t, map[string]any{
		loader: program{}, "bin/p": program{interp: "/" + loader, needed: []string{"l.so"}, rpath: "/r"},
		"r/l.so": program{}, "bin/l.so": program{}, "given/l.so": program{},
	})
	a.LibraryPath, a.Dir = "\n$ORIGIN:/none;/r:given", "/"
	if err := a.AddProgram("/bin/p"); err != nil {
		t.Fatal(err)
	}
	_, records := archived(t, a)
	for name, want := range map[string]bool{"given/l.so": true, "r/l.so": false, "bin/l.so": false} {
		if _, ok := records[name]; ok != want {
			t.Errorf("%s: %v, want %v", name, ok, want)
		}
	}
}

// What the guest has as LD_LIBRARY_PATH counts as much as this host's own loader makes of it, and in the same
// order; what this process has does not.
func TestLibraryPathIsTheLoaders(t *testing.T) {
	gcc, dir := testenv.Tool(t, "gcc"), t.TempDir()
	build := func(out, source string, args ...string) {
		t.Helper()
		out = filepath.Join(dir, out)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(gcc, slices.Concat([]string{"-x", "c", "-", "-x", "none", "-o", out}, args)...)
		c.Dir, c.Stdin = dir, strings.NewReader(source)
		if text, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	library := []string{"-shared", "-fPIC"}
	for _, folder := range []string{"own", "a", "b"} {
		build(folder+"/libn.so", "int n(void) { return 0; }", library...)
		build(folder+"/libl.so", "int n(void); int l(void) { return n(); }", append(library, "-L"+folder, "-ln")...)
	}
	programs := map[string][]string{
		"bin/none":    nil,
		"bin/rpath":   {"-Wl,--disable-new-dtags,-rpath," + dir + "/own"},
		"bin/runpath": {"-Wl,--enable-new-dtags,-rpath," + dir + "/own"},
	}
	for name, args := range programs {
		build(name, "int l(void); int main(void) { return l(); }", append(args, "-Lown", "-ll", "-Wl,-rpath-link,own")...)
	}
	t.Setenv("LD_LIBRARY_PATH", filepath.Join(dir, "own"))
	for _, value := range []string{
		dir + "/a", dir + "/b:" + dir + "/a", "/none;" + dir + "/b", "$ORIGIN/../a", "${ORIGIN}/../b:/none",
		"a", "none:b", ":/none", "",
	} {
		for name := range programs {
			start := dir
			if strings.HasPrefix(value, ":") {
				start = filepath.Join(dir, "b") // it is where an empty folder leads
			}
			program := filepath.Join(dir, name)
			c := exec.Command(program)
			c.Dir, c.Env = start, []string{"LD_TRACE_LOADED_OBJECTS=1", "LD_LIBRARY_PATH=" + value}
			out, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			want, missing := map[string]bool{}, strings.Contains(string(out), "not found")
			for line := range strings.Lines(string(out)) {
				words := strings.Fields(line)
				if !strings.HasSuffix(words[0], ".so") || strings.Contains(line, "not found") {
					continue
				}
				path := words[0] // in an empty folder
				if words[1] == "=>" {
					path = words[2]
				}
				if !filepath.IsAbs(path) {
					path = filepath.Join(start, path)
				}
				want[inGuest(t, path)] = true
			}
			a := initramfs.New()
			a.LibraryPath, a.Dir = value, start
			err = a.AddProgram(program)
			if errors.Is(err, initramfs.ErrLibrary) != missing || err != nil && !missing {
				t.Errorf("%s with %q: %v; the loader says\n%s", name, value, err, out)
			}
			if missing {
				continue
			}
			_, records := archived(t, a)
			for _, folder := range []string{"own", "a", "b"} {
				for _, lib := range []string{"libl.so", "libn.so"} {
					path := strings.TrimPrefix(filepath.Join(dir, folder, lib), "/")
					if _, ok := records[path]; ok != want[path] {
						t.Errorf("%s with %q: %s/%s is there: %v; the loader says\n%s", name, value, folder, lib, ok, out)
					}
				}
			}
		}
	}
}

// What is missing is named, with what needs it and where it was looked for.
func TestMissingLibraryIsNamed(t *testing.T) {
	loader := "/lib/ld-linux.so.2"
	root := system(t, map[string]any{
		loader:     program{},
		"bin/p":    program{interp: loader, needed: []string{"l.so"}, rpath: "/opt/a"},
		"lib/l.so": program{needed: []string{"gone.so.7"}, runpath: "/opt/b"},
		"bin/q":    program{interp: "/lib/ld-none.so"},
		"bin/cut":  program{interp: loader, needed: []string{"l.so"}}.elf()[:200],
	})
	for path, says := range map[string][]string{
		"/bin/p":   {"gone.so.7", root + "/lib/l.so needs", root + "/opt/b", root + "/usr/lib"},
		"/bin/q":   {root + "/lib/ld-none.so"},
		"/bin/cut": {root + "/bin/cut", "unexpected EOF"},
	} {
		a := initramfs.New()
		a.Sysroot = root
		err := a.AddProgram(path)
		if !errors.Is(err, initramfs.ErrFile) || errors.Is(err, initramfs.ErrLibrary) != (path != "/bin/cut") {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v: no %q", path, err, s)
			}
		}
	}
}

// A program that is included brings its libraries, if they are there; that they are not is said.
func TestAddLibraries(t *testing.T) {
	loader := "/lib64/ld-linux-x86-64.so.2"
	root := system(t, map[string]any{
		loader:           program{},
		"lib/l.so":       program{},
		"mine/p":         program{interp: loader, needed: []string{"l.so"}},
		"mine/lacks":     program{interp: loader, needed: []string{"l.so", "gone.so.7"}},
		"mine/static":    program{},
		"mine/elsewhere": program{machine: elf.EM_AARCH64, interp: "/lib/ld-linux-aarch64.so.1"},
		"mine/text":      []byte("#!/bin/none\n"),
	})
	for name, want := range map[string]struct {
		files   []string
		leftOut string
	}{
		"p":         {[]string{strings.TrimPrefix(loader, "/"), "lib/l.so"}, ""},
		"lacks":     {nil, "gone.so.7, which " + root + "/mine/lacks needs, is not found in "},
		"static":    {},
		"elsewhere": {},
		"text":      {},
	} {
		a := initramfs.New()
		a.Sysroot, a.Arch = root, "x86_64"
		if err := a.AddLibraries(filepath.Join(root, "mine", name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_, records := archived(t, a)
		for _, file := range []string{strings.TrimPrefix(loader, "/"), "lib/l.so"} {
			if _, ok := records[file]; ok != slices.Contains(want.files, file) {
				t.Errorf("%s: %v", name, slices.Sorted(maps.Keys(records)))
			}
		}
		said := strings.Join(a.LeftOut(), "; ")
		if !strings.Contains(said, want.leftOut) || want.leftOut == "" && said != "" {
			t.Errorf("%s: %q, want %q", name, said, want.leftOut)
		}
	}
}

// A program for another architecture is refused, whatever it needs and wherever it is.
func TestForeignPrograms(t *testing.T) {
	root := system(t, map[string]any{
		"dynamic":                           program{machine: elf.EM_AARCH64, interp: "/lib/ld-linux-aarch64.so.1"},
		"static":                            program{machine: elf.EM_AARCH64},
		"sysroot/lib/ld-linux-aarch64.so.1": program{machine: elf.EM_AARCH64},
	})
	for _, name := range []string{"dynamic", "static"} {
		for _, sysroot := range []string{"", filepath.Join(root, "sysroot")} {
			a := initramfs.New()
			a.Sysroot = sysroot
			a.Arch = "x86_64"
			err := a.AddProgram(filepath.Join(root, name))
			if !errors.Is(err, initramfs.ErrForeign) || !strings.Contains(err.Error(), "EM_AARCH64, and the guest is x86_64") {
				t.Errorf("%s, sysroot %q: %v", name, sysroot, err)
			}
			a.Arch = "arm64"
			if err := a.AddProgram(filepath.Join(root, name)); err != nil && (name == "static" || sysroot != "") {
				t.Errorf("%s, sysroot %q: %v", name, sysroot, err)
			}
		}
	}
}

// A program that is found by a link runs with its own libraries in a root that has nothing else.
func TestLinkedProgramRunsInItsArchive(t *testing.T) {
	gcc := testenv.Tool(t, "gcc")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"l.c": "int answer(void) { return 42; }",
		"p.c": "int answer(void); int main(void) { return answer() != 42; }",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"-shared", "-fPIC", "-o", "lib/libl.so", "l.c"},
		{"-o", "bin/p", "p.c", "-Llib", "-ll", "-Wl,-rpath," + dir + "/lib"},
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(args[slices.Index(args, "-o")+1])), 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(gcc, args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("bin/p", link); err != nil {
		t.Fatal(err)
	}
	a := initramfs.New()
	if err := a.AddProgram(link); err != nil {
		t.Fatal(err)
	}
	if out, err := inItsRoot(t, a, link); err != nil {
		t.Errorf("%v, %s", err, out)
	}
}
