//go:build linuxbed

package linux

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// changing is what differs between two runs of the same tests: times, addresses, goroutines.
var changing = regexp.MustCompile(`\d+\.\d+s|0x[0-9a-f]+|goroutine \d+|pc=\S+`)

// The exec flag changes where tests run, and nothing of what go test makes of them.
func TestGoTestExec(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("KTSTR_TEST_GO")
	goroot := filepath.Join(dir, "root")
	goTest := func(flags ...string) (string, int) {
		cmd := exec.Command(filepath.Join(goroot, "bin", "go"), append(append([]string{"test", "-trimpath", "-vet=off"}, flags...), "./...")...)
		cmd.Dir = filepath.Join(dir, "module")
		cmd.Env = append(os.Environ(), "GOROOT="+goroot, "GOCACHE="+filepath.Join(dir, "cache"), "GOTOOLCHAIN=local", "GOFLAGS=-mod=mod", "CGO_ENABLED=0", "GOTELEMETRY=off")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return changing.ReplaceAllString(string(out), "…"), cmd.ProcessState.ExitCode()
	}
	want, wantCode := goTest()
	got, code := goTest("-exec", vmm+" run --kernel "+kernel+" --timeout 3m --")
	if got != want || code != wantCode || code != 1 {
		t.Errorf("exit code %d, without -exec %d\n%s\nwithout -exec:\n%s", code, wantCode, got, want)
	}
}
