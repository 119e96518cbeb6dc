package guest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// function is the code of one in a disassembly by binutils.
func function(t *testing.T, objdump, file, name string) string {
	t.Helper()
	out, err := exec.Command(testenv.Tool(t, objdump), "-d", "--no-show-raw-insn", file).Output()
	if err != nil {
		t.Fatalf("%s %s: %v", objdump, file, err)
	}
	_, code, ok := strings.Cut(string(out), "<"+name+">:\n")
	if !ok {
		t.Fatalf("%s has no %s", file, name)
	}
	code, _, _ = strings.Cut(code, "\n\n")
	return code
}

// count is how many lines of code match.
func count(code, pattern string) int {
	return len(regexp.MustCompile("(?m)"+pattern).FindAllString(code, -1))
}

// The C writer publishes write_ptr by one store with release order, and looks at read_ptr by a load with acquire order:
// STLR and LDAR on arm64, plain 8-byte moves on x86_64, whose stores and loads have those orders (SDM volume 3, 9.2.2).
func TestImagesOrderTheirWrites(t *testing.T) {
	dir := buildImages(t)
	const published, read = 0x10, 0x18 // write_ptr and read_ptr in the header
	arm := filepath.Join(dir, "src", "arm64", "demo.elf")
	code := function(t, "aarch64-linux-gnu-objdump", arm, "ring_write")
	if stores, loads := count(code, `\tstlr\tx`), count(code, `\tldar\tx`); stores != 1 || loads != 1 {
		t.Errorf("arm64: %d STLR and %d LDAR, want one of each:\n%s", stores, loads, code)
	}
	_, after, _ := strings.Cut(code, "\tstlr\t")
	if after, _, _ = strings.Cut(after, "\tret"); count(after, `\t(st[a-z]+|bl)\t`) != 0 {
		t.Errorf("arm64: stores between the STLR and the return:\n%s", code)
	}
	if code := function(t, "aarch64-linux-gnu-objdump", arm, "ring_has_room"); count(code, `\tldar\tx`) != 1 {
		t.Errorf("arm64: it looks for room without LDAR:\n%s", code)
	}
	code = function(t, "x86_64-linux-gnu-objdump", filepath.Join(dir, "src", "x86_64", "ring.o"), "ring_write")
	if n := count(code, `\tmov +%r\w+,0x10\(%r[^s]\w*\)`); n != 1 {
		t.Errorf("x86_64: %d moves to 0x%x of the header, want one of 8 bytes:\n%s", n, published, code)
	}
	if n := count(code, `\tmov +0x18\(%r[^s]\w*\),%r`); n == 0 {
		t.Errorf("x86_64: no move of 8 bytes from 0x%x of the header:\n%s", read, code)
	}
}

// So do Go's writer and reader: by STLR and LDAR, and by XCHG.
func TestGoOrdersItsWrites(t *testing.T) {
	tool := testenv.Tool(t, "go")
	for goarch, want := range map[string]struct{ store, load string }{
		"amd64": {`\tXCHGQ `, `\tMOVQ `}, "arm64": {`\tSTLR `, `\tLDAR `},
	} {
		binary := filepath.Join(t.TempDir(), "shm.test")
		build := exec.Command(tool, "test", "-c", "-o", binary, "../pkg/shm")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+goarch)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, name := range []string{`\(\*Writer\)\.write`, `\(\*Reader\)\.Drain`} {
			out, err := exec.Command(tool, "tool", "objdump", "-s", `pkg/shm\.`+name+"$", binary).Output()
			if err != nil {
				t.Fatal(err)
			}
			// In lines of the file with the accessors, which are inlined.
			var code strings.Builder
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "atomic.go:") {
					code.WriteString(line)
				}
			}
			if count(code.String(), want.store) == 0 || count(code.String(), want.load) == 0 {
				t.Errorf("%s: %s has no %q or no %q:\n%s", goarch, name, want.store, want.load, code.String())
			}
		}
	}
}
