package linux_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ktstr/ktstr-vmm/pkg/agent"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// kernel is a file that looks like a bzImage from outside.
func kernel(t *testing.T) string {
	t.Helper()
	b := make([]byte, 4096)
	copy(b[0x202:], "HdrS")
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// described returns a guest's machine, the names in its initramfs, and what its agent is told.
func described(t *testing.T, g linux.Guest) (vm.Config, []string, agent.Spec) {
	t.Helper()
	g.Kernel = kernel(t)
	cfg, files, err := g.Config()
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	var out bytes.Buffer
	if _, err := cfg.Initrd.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	var spec agent.Spec
	for _, r := range records {
		names["/"+r.Name] = true
		if "/"+r.Name == agent.SpecPath {
			text := make([]byte, r.FileSize)
			if _, err := r.ReadAt(text, 0); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &spec); err != nil {
				t.Fatal(err)
			}
		}
	}
	return cfg, slices.Collect(maps.Keys(names)), spec
}

func TestGuest(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("TERM", "dumb")
	for _, name := range []string{"testdata/sub/golden", "tree/file"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join(dir, "testdata/sub/golden")

	_, names, spec := described(t, linux.Guest{Command: []string{self, "-test.v"}, Include: []string{"tree:/there"}, Env: []string{"A=b=c"}, Scheduler: []string{"/bin/sh", "-x"}, TTY: true})
	for _, want := range []string{"/init", "/dev/console", self, golden, "/there/file", "/bin/sh"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %q", want, names)
		}
	}
	if !slices.Equal(spec.Args, []string{self, "-test.v"}) || spec.Dir != dir || !spec.TTY || spec.OneOutput || !slices.Equal(spec.Scheduler, []string{"/bin/sh", "-x"}) ||
		!slices.Contains(spec.Env, "A=b=c") || !slices.Contains(spec.Env, "TERM=dumb") || !slices.Contains(spec.Env, "HOME=/root") {
		t.Errorf("%+v", spec)
	}

	if _, names, _ := described(t, linux.Guest{Command: []string{"/bin/sh"}}); slices.Contains(names, golden) {
		t.Error("a command that is no Go test has testdata")
	}
}

func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		guest linux.Guest
		want  string
	}{
		{linux.Guest{}, linux.Cmdline},
		{linux.Guest{Append: "a b"}, linux.Cmdline + " a b"},
		{linux.Guest{Append: "a", Verbose: true}, linux.Cmdline + " loglevel=7 a"},
		{linux.Guest{Append: "a", Verbose: true, CmdlineOnly: "mine"}, "mine"},
	} {
		tc.guest.Command = []string{"/bin/sh"}
		if cfg, _, _ := described(t, tc.guest); cfg.Cmdline != tc.want {
			t.Errorf("%q, want %q", cfg.Cmdline, tc.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	good := kernel(t)
	for name, tc := range map[string]struct {
		guest linux.Guest
		says  string
	}{
		"no command":   {linux.Guest{Kernel: good}, "command behind --"},
		"no kernel":    {linux.Guest{Kernel: "/no/such/kernel", Command: []string{"true"}}, "--kernel"},
		"bad kernel":   {linux.Guest{Kernel: "/proc/self/status", Command: []string{"true"}}, "neither a bzImage nor an ELF file"},
		"no include":   {linux.Guest{Kernel: good, Command: []string{"true"}, Include: []string{"/no/such/file"}}, "--include"},
		"bad env":      {linux.Guest{Kernel: good, Command: []string{"true"}, Env: []string{"=b"}}, "--env"},
		"no initrd":    {linux.Guest{Kernel: good, Command: []string{"true"}, Initrd: "/no/such/initrd"}, "--initrd"},
		"no agent":     {linux.Guest{Kernel: good, Command: []string{"true"}, Agent: "/no/such/agent"}, "/no/such/agent"},
		"not an agent": {linux.Guest{Kernel: good, Command: []string{"true"}, Agent: "/proc/self/status"}, "/proc/self/status"},
	} {
		if _, files, err := tc.guest.Config(); err == nil || files != nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}
