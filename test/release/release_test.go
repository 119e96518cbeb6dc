// Package release tests what "make release" builds.
package release

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// machines are the ELF machines of the binaries of a release.
var machines = map[string]elf.Machine{
	"ktstr-vmm-linux-amd64": elf.EM_X86_64,
	"ktstr-vmm-linux-arm64": elf.EM_AARCH64,
}

// Two clones in different folders make the same files: static binaries for each architecture, with a version, and
// their checksums.
func TestRelease(t *testing.T) {
	if testing.Short() {
		t.Skip("in short mode: it builds the program four times")
	}
	for _, tool := range []string{"git", "make", "go"} {
		testenv.Tool(t, tool)
	}
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "another", "longer path")
	first, second := release(t, one), release(t, two)
	if len(first) != len(machines)+1 || len(second) != len(first) {
		t.Errorf("%d and %d files, want %d binaries and their checksums", len(first), len(second), len(machines))
	}
	sums := string(first["SHA256SUMS"])
	for name, content := range first {
		if !bytes.Equal(content, second[name]) {
			t.Errorf("%s differs: %d bytes, and %d", name, len(content), len(second[name]))
		}
		if bytes.Contains(content, []byte(dir)) {
			t.Errorf("%s names the folder in which it was built", name)
		}
		machine, binary := machines[name]
		if !binary {
			continue
		}
		checkBinary(t, name, content, machine)
		if line := fmt.Sprintf("%x  %s\n", sha256.Sum256(content), name); !strings.Contains(sums, line) {
			t.Errorf("no line %q in the checksums:\n%s", line, sums)
		}
	}
}

// checkBinary checks that a binary is static, for a machine, and knows its version.
func checkBinary(t *testing.T, name string, content []byte, machine elf.Machine) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if f.Machine != machine || f.Type != elf.ET_EXEC {
		t.Errorf("%s: %v, %v; want %v", name, f.Machine, f.Type, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static, it has a %v", name, p.Type)
		}
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if v := info.Main.Version; v != version {
		t.Errorf("%s: version %q, want %s", name, v, version)
	}
}

// version is the one of the tag that release puts on its commit.
const version = "v1.2.3"

// release makes a clone in a folder, runs "make release" there, and returns the files that come of it.
func release(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	clone(t, dir)
	run(t, dir, "make", "--no-print-directory", "release")
	return filesIn(t, filepath.Join(dir, "bin", "release"))
}

// clone makes a repository of what is here in a folder, with one commit that has the version as its tag.
func clone(t *testing.T, dir string) {
	t.Helper()
	copyTree(t, dir)
	run(t, dir, "git", "init", "-q")
	run(t, dir, "git", "add", "-A")
	run(t, dir, "git", "commit", "-q", "-m", "all of it")
	run(t, dir, "git", "tag", version)
}

// run runs a command in a folder and returns what it prints on stdout.
func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@example.test", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@example.test", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v\n%s%s", args, err, &stdout, &stderr)
	}
	return stdout.String()
}

// copyTree copies the files that git knows, or would, to a folder.
func copyTree(t *testing.T, to string) {
	t.Helper()
	root := filepath.Join("..", "..")
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	list, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		from := filepath.Join(root, name)
		info, err := os.Stat(from)
		if os.IsNotExist(err) { // deleted, but not for git yet
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(to, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), content, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}
