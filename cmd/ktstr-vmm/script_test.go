package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
)

func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"ktstr-vmm": main})
}

// tests are this package's, after which what they have built is removed.
type tests struct{ *testing.M }

func (m tests) Run() int {
	defer func() { _ = os.RemoveAll(built.dir) }()
	return m.M.Run()
}

// TestScripts runs the command as a user does, where no machine is needed. Beside testscript's own commands
// there is "exits CODE PROGRAM ARG…".
func TestScripts(t *testing.T) {
	vectors, err := filepath.Abs(filepath.Join("..", "..", "pkg", "shm", "testdata", "vectors"))
	if err != nil {
		t.Fatal(err)
	}
	variables := map[string]string{"VECTORS": vectors}
	dir := t.TempDir()
	add := func(name, file string, content []byte) {
		variables[name] = filepath.Join(dir, file)
		if err := os.WriteFile(variables[name], content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, arch := range map[string]string{"STATIC_X86": "x86_64", "STATIC_ARM64": "arm64"} {
		agent, err := guest.Agent(arch) // as a static program
		if err != nil {
			t.Fatal(err)
		}
		add(name, "static-"+arch, agent)
	}
	image, err := guest.Demo("arm64")
	if err != nil {
		t.Fatal(err)
	}
	add("IMAGE", "Image", image)
	variables["KERNEL"] = variables["STATIC_X86"] // an ELF file is one as far as these scripts go
	if kernel.HostArch() == "arm64" {
		variables["KERNEL"] = variables["IMAGE"]
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(image); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	add("CUT_IMAGE", "cut.gz", packed.Bytes()[:packed.Len()/2])
	tree, ram := arm64RAM(t)
	add("TREE", "tree.dtb", tree)
	add("RAM", "ram", ram)
	scripts(t, "plain", variables)
}

// TestMachineScripts does so with machines, on each back end and for each architecture.
func TestMachineScripts(t *testing.T) {
	t.Parallel()
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		traits := vmtest.TraitsOf(m.Arch)
		scripts(t, "machine", map[string]string{
			"ACCEL": m.Backend.Name(), "ARCH": m.Arch,
			"TRIPLE_FAULT": traits.TripleFault.Error(),
			"RING_BASE":    fmt.Sprintf("0x%x", traits.RingBase),
			"RINGS":        fmt.Sprint(traits.Rings),
		})
	})
}

// scripts runs a folder of scripts, with variables for them.
func scripts(t *testing.T, dir string, variables map[string]string) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script", dir),
		Setup: func(env *testscript.Env) error {
			for name, value := range variables {
				env.Setenv(name, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// built is the command as program has built it. It is built once: each time takes seconds of a processor.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// program is the command for tests that need a process of its own: signals, pipes, scrapes. Where there is no go
// command, as in the bed, it is built already.
func program(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("KTSTR_TEST_VMM"); path != "" {
		return path
	}
	built.once.Do(func() { built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "ktstr-vmm")
}

// build builds the command in a folder that every user can look into.
func build() (err error) {
	if built.dir, err = os.MkdirTemp("", "ktstr-vmm"); err != nil {
		return err
	}
	if err := os.Chmod(built.dir, 0o755); err != nil {
		return err
	}
	args := []string{"build", "-o", built.dir, fmt.Sprintf("-race=%t", testenv.Race), "."}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// limited keeps the first bytes that are written to it.
type limited struct{ text []byte }

func (l *limited) Write(p []byte) (int, error) {
	l.text = append(l.text, p[:min(len(p), 200-min(200, len(l.text)))]...)
	return len(p), nil
}

// FuzzArguments: no command line panics; what is no good is one line and 125. To make the other commands takes
// longer than to read their flags, so there is only one.
func FuzzArguments(f *testing.F) {
	for _, args := range []string{"demo", "--memory=12Q", "--shm-size=9K", "--timeout=1ns", "--scenario=flood,count=",
		"--grace=-1s", "--cpus=x", "--report-format=xml"} {
		f.Add(args, "--poll=0s")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if a == "-h" || b == "-h" {
			return
		}
		// --poll 2s is refused whatever else is right, so nothing starts.
		var out, errOut limited
		code := executeCommand(demoCommand(), []string{a, b, "--poll=2s"}, &out, &errOut)
		if code != 125 && code != 0 {
			t.Fatalf("%q %q: exit code %d", a, b, code)
		}
		if code == 125 {
			oneLineOf(t, errOut.text)
		}
	})
}

func oneLineOf(t *testing.T, text []byte) {
	t.Helper()
	for i, c := range text {
		if c == '\n' && i != len(text)-1 || c == 0x1b {
			t.Fatalf("more than a line: %q", text)
		}
	}
}
