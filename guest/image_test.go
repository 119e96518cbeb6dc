package guest_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/needs"
)

// compiler is Debian 12's; another one makes other bytes of the same source.
const compiler = "12.2.0"

// The committed image is what its source gives, byte for byte.
func TestImageIsBuiltFromItsSource(t *testing.T) {
	version, err := exec.Command(needs.Tool(t, "gcc"), "-dumpfullversion").Output()
	if err != nil {
		t.Fatal(err)
	}
	if v := strings.TrimSpace(string(version)); v != compiler {
		needs.Missing(t, "gcc "+compiler, &os.PathError{Op: "version", Path: "gcc", Err: os.ErrNotExist})
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "src"), os.DirFS("src")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(needs.Tool(t, "make"), "-C", filepath.Join(dir, "src")).CombinedOutput(); err != nil {
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
