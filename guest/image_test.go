package guest_test

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// compiler is Debian 12's; another one makes other bytes of the same source.
const compiler = "12.2.0"

// The committed image is what its source gives, byte for byte.
func TestImageIsBuiltFromItsSource(t *testing.T) {
	version, err := exec.Command(testenv.Tool(t, "gcc"), "-dumpfullversion").Output()
	if err != nil {
		t.Fatal(err)
	}
	if v := strings.TrimSpace(string(version)); v != compiler {
		testenv.Missing(t, "gcc "+compiler, &os.PathError{Op: "version", Path: "gcc", Err: os.ErrNotExist})
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "src"), os.DirFS("src")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool(t, "make"), "-C", filepath.Join(dir, "src")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	built, err := os.ReadFile(filepath.Join(dir, "demo-x86_64.elf"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, guest.Demo) {
		t.Error("the committed image is not what its source gives: run \"make guest\" and commit the image")
	}
}

// maxAgent bounds the agent, in bytes: a guest's kernel unpacks it at every boot.
const maxAgent = 3_000_000

// The committed agent is what its source gives, byte for byte, where the Go that it names builds it.
func TestAgentIsBuiltFromItsSource(t *testing.T) {
	committed := agent(t)
	info, err := buildinfo.Read(bytes.NewReader(committed))
	if err != nil {
		t.Fatal(err)
	}
	tool := testenv.Tool(t, "go")
	t.Setenv("GOTOOLCHAIN", info.GoVersion)
	if out, err := exec.Command(tool, "version").CombinedOutput(); err != nil {
		testenv.Missing(t, info.GoVersion, fmt.Errorf("%w: %s", err, out))
	}
	dir := t.TempDir()
	if out, err := exec.Command(tool, "run", "./pack", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	packed, err := os.ReadFile(filepath.Join(dir, "agent-x86_64.zst"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	built, err := r.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, committed) {
		t.Errorf("the committed agent is not what its source gives, built by %s: run \"make guest\" and commit it",
			info.GoVersion)
	}
}

func TestAgentIsSmallAndStatic(t *testing.T) {
	program := agent(t)
	if len(program) > maxAgent {
		t.Errorf("the agent has %d bytes, it may have %d", len(program), maxAgent)
	}
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the agent is dynamically linked")
		}
	}
	if f.Machine != elf.EM_X86_64 {
		t.Errorf("the agent is for %v", f.Machine)
	}
}

func TestAgentOfNoGuest(t *testing.T) {
	if _, err := guest.Agent("z80"); !errors.Is(err, guest.ErrArch) {
		t.Error(err)
	}
}

func agent(t *testing.T) []byte {
	t.Helper()
	program, err := guest.Agent("x86_64")
	if err != nil {
		t.Fatal(err)
	}
	return program
}
