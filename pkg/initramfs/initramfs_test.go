package initramfs_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ktstr/ktstr-vmm/internal/needs"
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
		needs.Missing(t, "root", os.ErrPermission)
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
	return exec.Command(needs.Tool(t, "chroot"), append([]string{root}, command...)...).CombinedOutput()
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
