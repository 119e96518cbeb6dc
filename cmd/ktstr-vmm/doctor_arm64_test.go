package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
)

// Doctor says whether Linux's ring is coherent with the host's caches on KVM, and a run for which it is not is refused,
// with what to do.
func TestCaches(t *testing.T) {
	testenv.KVM(t)
	path := program(t)
	incoherent := errors.Is(kvm.Backend{}.CheckUncached(), kvm.ErrIncoherent)
	line := "\nok    caches       the processors have FEAT_S2FWB:"
	if incoherent {
		line = "\nwarn  caches       memory that a guest maps uncached is not coherent"
	}
	if out, _ := exec.Command(path, "doctor").Output(); !strings.Contains(string(out), line) {
		t.Errorf("no line %q in\n%s", line, out)
	}

	// The embedded guest in the place of a kernel: what is asked is how a run begins.
	image, err := guest.Demo("arm64")
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "Image")
	if err := os.WriteFile(kernel, image, 0o644); err != nil {
		t.Fatal(err)
	}
	for reserve, refused := range map[string]bool{"no-map": incoherent, "cacheable": false} {
		cmd := exec.Command(path, "run", "--accel", "kvm", "--shm-reserve", reserve, "--kernel", kernel, "--timeout", "10s",
			"--", os.Args[0])
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		code, says := ends(t, cmd), stderr.String()
		if strings.Contains(says, "no FEAT_S2FWB") != refused {
			t.Errorf("%s: refused: %t; exit code %d, %s", reserve, refused, code, says)
		}
		if refused && (code != 125 || strings.Count(says, "\n") != 1 || !strings.Contains(says, "--accel emulator") ||
			!strings.Contains(says, "--shm-reserve cacheable")) {
			t.Errorf("%s: exit code %d, %s", reserve, code, says)
		}
	}
}
