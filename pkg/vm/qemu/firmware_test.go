package qemu_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// The committed firmware is what its source gives, byte for byte.
func TestFirmwareIsBuiltFromItsSource(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("firmware")); err != nil {
		t.Fatal(err)
	}
	testenv.Tool(t, "x86_64-linux-gnu-gcc")
	testenv.Tool(t, "aarch64-linux-gnu-gcc")
	if out, err := exec.Command(testenv.Tool(t, "make"), "-B", "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"x86_64.bin", "arm64.bin"} {
		built, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		committed, err := os.ReadFile(filepath.Join("firmware", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(built, committed) {
			t.Errorf(`%s: the committed firmware is not what its source gives: run "make guest" and commit it`, name)
		}
	}
}
