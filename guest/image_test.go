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

// images are the embedded guest's, by architecture.
var images = map[string]string{"x86_64": "demo-x86_64.elf", "arm64": "demo-arm64.img"}

// buildImages builds the images in a folder, with what they are made of in its src.
func buildImages(t *testing.T) string {
	t.Helper()
	for _, gcc := range []string{"x86_64-linux-gnu-gcc", "aarch64-linux-gnu-gcc"} {
		version, err := exec.Command(testenv.Tool(t, gcc), "-dumpfullversion").Output()
		if err != nil {
			t.Fatal(err)
		}
		if v := strings.TrimSpace(string(version)); v != compiler {
			testenv.Missing(t, gcc+" "+compiler, fmt.Errorf("it is %s", v))
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "src"), os.DirFS("src")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool(t, "make"), "-C", filepath.Join(dir, "src")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// The committed images are what their source gives, byte for byte.
func TestImagesAreBuiltFromTheirSource(t *testing.T) {
	dir := buildImages(t)
	for _, arch := range guest.Architectures {
		built, err := os.ReadFile(filepath.Join(dir, images[arch]))
		if err != nil {
			t.Fatal(err)
		}
		if committed, err := guest.Demo(arch); err != nil || !bytes.Equal(built, committed) {
			t.Errorf("%s: the committed image is not what its source gives: run \"make guest\" and commit it; %v", arch, err)
		}
	}
}

// maxAgent bounds the agent, in bytes: a guest's kernel unpacks it at every boot.
const maxAgent = 3_000_000

// The committed agents are what their source gives, byte for byte, where the Go that they name builds them.
func TestAgentsAreBuiltFromTheirSource(t *testing.T) {
	committed := agent(t, "x86_64")
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
	for _, arch := range guest.Architectures {
		if !bytes.Equal(unpacked(t, filepath.Join(dir, "agent-"+arch+".zst")), agent(t, arch)) {
			t.Errorf("%s: the committed agent is not what its source gives, built by %s: run \"make guest\" and commit it",
				arch, info.GoVersion)
		}
	}
}

// unpacked is what a file has packed.
func unpacked(t *testing.T, path string) []byte {
	t.Helper()
	packed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := r.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestAgentsAreSmallAndStatic(t *testing.T) {
	machines := map[string]elf.Machine{"x86_64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for _, arch := range guest.Architectures {
		program := agent(t, arch)
		if len(program) > maxAgent {
			t.Errorf("%s: the agent has %d bytes, it may have %d", arch, len(program), maxAgent)
		}
		f, err := elf.NewFile(bytes.NewReader(program))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s: the agent is dynamically linked", arch)
			}
		}
		if f.Machine != machines[arch] {
			t.Errorf("%s: the agent is for %v", arch, f.Machine)
		}
	}
}

func TestNoSuchGuest(t *testing.T) {
	if _, err := guest.Demo("z80"); !errors.Is(err, guest.ErrArch) {
		t.Error(err)
	}
	if _, err := guest.Agent("z80"); !errors.Is(err, guest.ErrArch) {
		t.Error(err)
	}
}

func agent(t *testing.T, arch string) []byte {
	t.Helper()
	program, err := guest.Agent(arch)
	if err != nil {
		t.Fatal(err)
	}
	return program
}
