package initramfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

var fixed = time.Unix(1e9, 0)

func write(t *testing.T, dir string, files map[string]os.FileMode) {
	t.Helper()
	for name, mode := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content of "+name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// archived returns an archive's bytes, which are as many as it says, and its records.
func archived(t *testing.T, a *initramfs.Archive) ([]byte, map[string]cpio.Record) {
	t.Helper()
	var out bytes.Buffer
	n, err := a.WriteTo(&out)
	if err != nil || uint64(n) != a.Size() || out.Len() != int(n) {
		t.Fatalf("%d bytes written, %d there, %d announced: %v", n, out.Len(), a.Size(), err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]cpio.Record{}
	for _, r := range records {
		byName[r.Name] = r
	}
	return out.Bytes(), byName
}

func content(t *testing.T, r cpio.Record) string {
	t.Helper()
	b := make([]byte, r.FileSize)
	if r.FileSize > 0 {
		if _, err := r.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	return string(b)
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"a/b/deep": 0o640, "a/run": 0o755, "empty": 0o600})
	if err := os.Truncate(filepath.Join(dir, "empty"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b/deep", filepath.Join(dir, "a", "link")); err != nil {
		t.Fatal(err)
	}
	a := initramfs.New()
	if err := a.AddTree(dir, "/data"); err != nil {
		t.Fatal(err)
	}
	a.AddText("/etc/name", "value\n", 0o644)
	a.AddBytes("/init", []byte("\x7fELF\x00"), 0o755)
	_, records := archived(t, a)
	for name, want := range map[string]struct {
		mode    uint64
		content string
	}{
		"dev/console":   {cpio.S_IFCHR | 0o600, ""},
		"etc":           {cpio.S_IFDIR | 0o755, ""},
		"etc/name":      {cpio.S_IFREG | 0o644, "value\n"},
		"init":          {cpio.S_IFREG | 0o755, "\x7fELF\x00"},
		"data/a/b":      {cpio.S_IFDIR | 0o755, ""},
		"data/a/b/deep": {cpio.S_IFREG | 0o640, "content of a/b/deep"},
		"data/a/run":    {cpio.S_IFREG | 0o755, "content of a/run"},
		"data/a/link":   {cpio.S_IFLNK | 0o777, "b/deep"},
		"data/empty":    {cpio.S_IFREG | 0o600, ""},
	} {
		r, ok := records[name]
		if !ok || r.Mode != want.mode || content(t, r) != want.content {
			t.Errorf("%s: %t, mode %o, %q; want %o, %q", name, ok, r.Mode, content(t, r), want.mode, want.content)
		}
	}
}

// The same files give the same bytes, in whatever order they were added and whoever owns them.
func TestDeterministic(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"one": 0o644, "two": 0o755})
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	build := func(order ...string) []byte {
		a := initramfs.New()
		for _, path := range order {
			if err := a.AddFile(path, path); err != nil {
				t.Fatal(err)
			}
		}
		b, _ := archived(t, a)
		return b
	}
	first := build(one, two)
	if err := os.Chtimes(one, fixed, fixed); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, build(two, one)) {
		t.Error("the order or a file's time shows in the archive")
	}
}

func TestBaseComesFirst(t *testing.T) {
	base := merged(t)
	a := initramfs.New()
	if err := a.SetBase(bytes.NewReader(base), uint64(len(base))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if n, err := a.WriteTo(&out); err != nil || uint64(n) != a.Size() {
		t.Fatal(n, err)
	}
	if got := out.Bytes(); !bytes.HasPrefix(got, base) || !bytes.HasPrefix(got[len(base):], []byte("070701")) {
		t.Errorf("%.30q", got[len(base):])
	}
}

// A dynamically linked program comes with its loader and libraries, a script with its interpreter:
// enough to run it in a root that has nothing else.
func TestProgramRunsInItsArchive(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/usr/bin/env bash\necho \"hello from $1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := initramfs.New()
	if err := a.AddProgram(script); err != nil {
		t.Fatal(err)
	}
	out, err := inItsRoot(t, a, script, "inside")
	if err != nil || string(out) != "hello from inside\n" {
		t.Errorf("%v, %s", err, out)
	}
}

// inItsRoot runs a command in a root that has what is in an archive and nothing else.
func inItsRoot(t *testing.T, a *initramfs.Archive, command ...string) ([]byte, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", os.ErrPermission)
	}
	out, _ := archived(t, a)
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out)))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, r := range records {
		if r.Mode&cpio.S_IFMT == cpio.S_IFCHR {
			continue
		}
		if err := cpio.CreateFileInRoot(r, root, false); err != nil {
			t.Fatal(err)
		}
	}
	return exec.Command(testenv.Tool(t, "chroot"), append([]string{root}, command...)...).CombinedOutput()
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	if err := os.WriteFile(loop, []byte("#!"+loop+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := initramfs.New()
	for name, err := range map[string]error{
		"absent":      a.AddFile(filepath.Join(dir, "absent"), "/x"),
		"folder":      a.AddFile(dir, "/x"),
		"device":      a.AddFile("/dev/null", "/x"),
		"absent tree": a.AddTree(filepath.Join(dir, "absent"), "/x"),
		"loop":        a.AddProgram(loop),
	} {
		if !errors.Is(err, initramfs.ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := initramfs.LookPath("no-such-program-anywhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A file that shrinks between being added and being written is an error, not a broken archive.
func TestFileThatShrinks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"file": 0o644})
	a := initramfs.New()
	if err := a.AddFile(filepath.Join(dir, "file"), "/file"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "file"), 3); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteTo(&bytes.Buffer{}); err == nil {
		t.Error("no error")
	}
}

// All of a file's mode is kept: set-user-ID, set-group-ID, and a folder's sticky bit.
func TestModesAreKept(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"tree/su": 0o755, "tree/sg": 0o755})
	for name, mode := range map[string]os.FileMode{"su": 0o755 | os.ModeSetuid, "sg": 0o750 | os.ModeSetgid,
		".": 0o777 | os.ModeSticky} {
		if err := os.Chmod(filepath.Join(dir, "tree", name), mode); err != nil {
			t.Fatal(err)
		}
	}
	a := initramfs.New()
	if err := errors.Join(a.AddTree(filepath.Join(dir, "tree"), "/t"),
		a.AddFile(filepath.Join(dir, "tree/su"), "/su")); err != nil {
		t.Fatal(err)
	}
	_, records := archived(t, a)
	for name, want := range map[string]uint64{"t/su": 0o104755, "su": 0o104755, "t/sg": 0o102750, "t": 0o041777} {
		if got := records[name].Mode; got != want {
			t.Errorf("%s: %o, want %o", name, got, want)
		}
	}
}

// The names of one file are hard links in the guest: one inode, whose content comes once, with the last.
func TestHardLinksAreLinks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"one": 0o644, "other": 0o644})
	for _, name := range []string{"sub/two", "zzz"} {
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, "one"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	a := initramfs.New()
	if err := a.AddTree(dir, "/d"); err != nil {
		t.Fatal(err)
	}
	_, records := archived(t, a)
	one, two, last, other := records["d/one"], records["d/sub/two"], records["d/zzz"], records["d/other"]
	if one.Ino == 0 || one.Ino != two.Ino || one.Ino != last.Ino || one.NLink != 3 || two.NLink != 3 || last.NLink != 3 {
		t.Errorf("inodes %d, %d, %d with %d, %d, %d links", one.Ino, two.Ino, last.Ino, one.NLink, two.NLink, last.NLink)
	}
	if content(t, one)+content(t, two) != "" || content(t, last) != "content of one" {
		t.Errorf("%q, %q, %q", content(t, one), content(t, two), content(t, last))
	}
	if other.Ino == one.Ino || other.NLink != 1 || content(t, other) != "content of other" {
		t.Errorf("a file with one name: inode %d, %d links, %q", other.Ino, other.NLink, content(t, other))
	}
}

// Sockets, named pipes and devices of a tree are left out and told of; asked for by name they are refused. None
// of them is opened: that would wait for a writer.
func TestSpecialFilesAreSkippedAndSaid(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"tree/file": 0o644})
	fifo, socket := filepath.Join(dir, "tree/fifo"), filepath.Join(dir, "tree/socket")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := initramfs.New()
	if err := a.AddTree(filepath.Join(dir, "tree"), "/t"); err != nil {
		t.Fatal(err)
	}
	want := []string{fmt.Sprintf("%q, a named pipe", fifo), fmt.Sprintf("%q, a socket", socket)}
	if said := a.LeftOut(); !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
	_, records := archived(t, a)
	if _, ok := records["t/file"]; !ok || len(records) != 4 { // dev, dev/console, t, t/file
		t.Errorf("%v", records)
	}
	if err := a.AddTree(fifo, "/fifo"); !errors.Is(err, initramfs.ErrFile) ||
		!strings.Contains(err.Error(), "a named pipe") {
		t.Error(err)
	}
	if err := a.AddProgram(fifo); !errors.Is(err, initramfs.ErrFile) {
		t.Error(err)
	}
}

// A link that is asked for by name leads to what it leads to here.
func TestNamedLinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"usr/lib64/ld.so": 0o755})
	if err := errors.Join(os.Symlink("usr/lib64", filepath.Join(dir, "lib64")),
		os.Symlink("lib64/ld.so", filepath.Join(dir, "ld"))); err != nil {
		t.Fatal(err)
	}
	a := initramfs.New()
	lib64 := filepath.Join(dir, "lib64")
	if err := errors.Join(a.AddTree(lib64, lib64), a.AddTree(lib64, "/other"),
		a.AddTree(filepath.Join(dir, "ld"), "/ld")); err != nil {
		t.Fatal(err)
	}
	_, records := archived(t, a)
	at := dir[1:]
	if r := records[at+"/lib64"]; r.Mode&cpio.S_IFMT != cpio.S_IFLNK || content(t, r) != "usr/lib64" {
		t.Errorf("lib64: %o", r.Mode)
	}
	for _, name := range []string{at + "/usr/lib64/ld.so", "other/ld.so", "ld"} {
		if r := records[name]; r.Mode&cpio.S_IFMT != cpio.S_IFREG {
			t.Errorf("%s: %o", name, r.Mode)
		}
	}
}

// A program's loader is not lost to what is included beside it.
func TestIncludedFolderKeepsTheLoader(t *testing.T) {
	for _, include := range []string{"/lib64", "/lib64:/lib64/", "/usr/lib64:/lib64"} {
		src, dst, ok := strings.Cut(include, ":")
		if !ok {
			dst = src
		}
		if _, err := os.Stat(src); err != nil {
			continue
		}
		a := initramfs.New()
		if err := errors.Join(a.AddTree(src, dst), a.AddProgram("/bin/sh"), a.AddTree(src, dst)); err != nil {
			t.Fatal(err)
		}
		if out, err := inItsRoot(t, a, "/bin/sh", "-c", "echo runs"); err != nil || string(out) != "runs\n" {
			t.Errorf("--include %s: %v, %s", include, err, out)
		}
	}
}

// A file that an initramfs can't hold is refused by its name.
func TestFileOf4GiBIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	a := initramfs.New()
	for size, ok := range map[int64]bool{1<<32 - 1: true, 1 << 32: false} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		err := a.AddFile(path, "/large")
		if (err == nil) != ok || err != nil && (!errors.Is(err, initramfs.ErrFile) || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), "4294967296 bytes")) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A file that can't be read is named when it is added or, where it is gone later, when it is written.
func TestUnreadableFileIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := initramfs.New()
	if err := a.AddFile(path, "/file"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err := a.WriteTo(&bytes.Buffer{})
	if !errors.Is(err, initramfs.ErrFile) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	err = a.AddFile(path, "/file")
	if root := os.Geteuid() == 0; !root && (!errors.Is(err, fs.ErrPermission) || !errors.Is(err, initramfs.ErrFile)) {
		t.Error(err)
	}
}

// A script's first line is read as the kernel does: blanks and tabs around the interpreter and its argument.
func TestScripts(t *testing.T) {
	for line, want := range map[string][]string{
		"#!/bin/sh\t-e":               {"/bin/sh"},
		"#! \t/bin/sh":                {"/bin/sh"},
		"#!/bin/sh -e ":               {"/bin/sh"},
		"#!/usr/bin/env\tsh":          {"/usr/bin/env", "/bin/sh"},
		"#!/usr/bin/env -S A=b sh -e": {"/usr/bin/env", "/bin/sh"},
		"#!/usr/bin/env -Ssh -e":      {"/usr/bin/env", "/bin/sh"},
		"#!":                          nil,
		"text":                        nil,
	} {
		script := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(script, []byte(line+"\n:\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		a := initramfs.New()
		t.Setenv("PATH", "/bin:/usr/bin")
		if err := a.AddProgram(script); err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		_, records := archived(t, a)
		for _, w := range want {
			if _, ok := records[strings.TrimPrefix(w, "/")]; !ok {
				t.Errorf("%q: no %s", line, w)
			}
		}
		if _, ok := records["bin/sh"]; ok && len(want) == 0 {
			t.Errorf("%q: there is a shell", line)
		}
	}
}

// What can't be where it is asked for is refused by name, before anything is written.
func TestPlacesThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]os.FileMode{"folder/file": 0o644, "file": 0o644})
	for name, add := range map[string]func(a *initramfs.Archive) error{
		"a file that is a folder too": func(a *initramfs.Archive) error {
			return errors.Join(a.AddFile(filepath.Join(dir, "file"), "/f"), a.AddTree(filepath.Join(dir, "folder"), "/f"))
		},
		"a file as the root": func(a *initramfs.Archive) error {
			return a.AddFile(filepath.Join(dir, "file"), "/")
		},
		"a file with the trailer's name": func(a *initramfs.Archive) error {
			return a.AddFile(filepath.Join(dir, "file"), cpio.Trailer)
		},
	} {
		a := initramfs.New()
		err := add(a)
		if err == nil {
			_, err = a.WriteTo(&bytes.Buffer{})
		}
		if !errors.Is(err, initramfs.ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
