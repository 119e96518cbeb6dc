package linux_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
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

// described returns a guest's machine, the files in its initramfs, and what its agent is told.
func described(t *testing.T, g linux.Guest) (vm.Config, map[string]string, agentproto.Job) {
	t.Helper()
	return describedOn(t, kernel(t), g)
}

// describedOn is described on a kernel.
func describedOn(t *testing.T, kernel string, g linux.Guest) (vm.Config, map[string]string, agentproto.Job) {
	t.Helper()
	g.Kernel = kernel
	cfg, opened, err := g.Config()
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	var out bytes.Buffer
	if _, err := cfg.Initrd.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, r := range records {
		content := make([]byte, r.FileSize)
		if len(content) > 0 {
			if _, err := r.ReadAt(content, 0); err != nil {
				t.Fatal(err)
			}
		}
		files["/"+r.Name] = string(content)
	}
	told, err := agentproto.ParseJob(files[agentproto.JobPath])
	if err != nil {
		t.Fatal(err)
	}
	return cfg, files, told
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

	_, files, told := described(t, linux.Guest{Command: []string{self, "-test.v"}, Include: []string{"tree:/there"},
		Env: []string{"A=b=c"}, Scheduler: []string{"/bin/sh", "-x"}, TTY: true})
	for _, want := range []string{"/init", "/dev/console", self, golden, "/there/file", "/bin/sh"} {
		if _, ok := files[want]; !ok {
			t.Errorf("no %s in %q", want, slices.Sorted(maps.Keys(files)))
		}
	}
	if agent, err := guest.Agent("x86_64"); err != nil || files["/init"] != string(agent) {
		t.Errorf("/init has %d bytes, the agent %d: %v", len(files["/init"]), len(agent), err)
	}
	if !slices.Equal(told.Args, []string{self, "-test.v"}) || told.Dir != dir || !told.TTY || told.OneOutput ||
		!slices.Equal(told.Scheduler, []string{"/bin/sh", "-x"}) ||
		told.OpenFiles.Soft == 0 || told.OpenFiles.Hard < told.OpenFiles.Soft || !slices.Contains(told.Env, "A=b=c") ||
		!slices.Contains(told.Env, "TERM=dumb") || !slices.Contains(told.Env, "HOME=/root") {
		t.Errorf("%+v", told)
	}

	_, files, _ = described(t, linux.Guest{Command: []string{"/bin/sh"}})
	if _, ok := files[golden]; ok {
		t.Error("a command that is no Go test has testdata")
	}
}

// A testdata that is a link comes with what it leads to.
func TestTestdataThatIsALink(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "shared/golden"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "shared/golden/file"), []byte("golden"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "pkg"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../shared/golden", filepath.Join(dir, "pkg/testdata")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "pkg"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, files, _ := described(t, linux.Guest{Command: []string{self}})
	if files[filepath.Join(dir, "pkg/testdata")] != "../shared/golden" ||
		files[filepath.Join(dir, "shared/golden/file")] != "golden" {
		t.Errorf("%q", slices.Sorted(maps.Keys(files)))
	}
}

// The modules of a kernel's folder, what they need first, are in the guest, and its agent is told of them.
func TestModules(t *testing.T) {
	gcc, tree := testenv.Tool(t, "gcc"), t.TempDir()
	image, err := os.ReadFile(kernel(t))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("boot/vmlinuz-7", string(image))
	for name, needs := range map[string]string{"a": "b", "b": ""} {
		write("lib/modules/7/m.c", `__attribute__((section(".modinfo"))) const char info[] = "depends=`+needs+`";`)
		cmd := exec.Command(gcc, "-c", "-o", name+".ko", "m.c")
		cmd.Dir = filepath.Join(tree, "lib/modules/7")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	_, files, told := describedOn(t, tree, linux.Guest{Command: []string{"/bin/sh"}, Modules: []string{"a x=1"}})
	want := []agentproto.Module{{Path: "/ktstr/modules/b.ko"}, {Path: "/ktstr/modules/a.ko", Params: "x=1"}}
	if !slices.Equal(told.Modules, want) || !strings.HasPrefix(files[want[0].Path], "\x7fELF") {
		t.Errorf("%v in %q", told.Modules, slices.Sorted(maps.Keys(files)))
	}
}

// A DST that ends in a slash is the folder in which a file comes to lie.
func TestIncludeIntoFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(os.Mkdir("tree", 0o755), os.WriteFile("file", []byte("text"), 0o644),
		os.WriteFile("tree/leaf", []byte("leaf"), 0o644)); err != nil {
		t.Fatal(err)
	}
	_, files, _ := described(t, linux.Guest{Command: []string{"/bin/sh"},
		Include: []string{"file:/", "file:/in/", "file:/as", "tree:/in/", "tree:/"}})
	for name, want := range map[string]string{"/file": "text", "/in/file": "text", "/as": "text",
		"/in/leaf": "leaf", "/leaf": "leaf"} {
		if files[name] != want {
			t.Errorf("%s: %q in %q", name, files[name], slices.Sorted(maps.Keys(files)))
		}
	}
}

// What is left out of a tree is told of.
func TestOnLeftOut(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said []string
	described(t, linux.Guest{Command: []string{"/bin/sh"}, Include: []string{dir},
		OnLeftOut: func(what string) { said = append(said, what) }})
	if want := []string{fmt.Sprintf("%q, a named pipe", filepath.Join(dir, "fifo"))}; !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
}

// With a sysroot a command is looked for in it first, and then on this host.
func TestSysroot(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "bin"), 0o755),
		os.WriteFile(filepath.Join(root, "bin/sh"), []byte("text of its own"), 0o755)); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(t.TempDir(), "mine")
	if err := os.WriteFile(mine, []byte("text of mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/bin")
	for command, want := range map[string]string{"sh": "/bin/sh", "/bin/sh": "/bin/sh", mine: mine, "/none": "/none"} {
		_, files, told := described(t, linux.Guest{Command: []string{command}, Sysroot: root})
		if told.Args[0] != want || want == "/bin/sh" && files[want] != "text of its own" ||
			want == mine && files[want] != "text of mine" {
			t.Errorf("%s: %q, %q", command, told.Args, files[want])
		}
	}
}

// What --env says of libraries counts for the command, in its folder, and for the scheduler, in the root; what
// this process's own environment says does not, for the guest has none of it.
func TestLibraryPath(t *testing.T) {
	gcc, dir := testenv.Tool(t, "gcc"), t.TempDir()
	t.Chdir(dir)
	err := errors.Join(
		os.Mkdir("lib", 0o755),
		os.WriteFile("l.c", []byte("int l(void) { return 0; }"), 0o644),
		os.WriteFile("p.c", []byte("int l(void); int main(void) { return l(); }"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-shared", "-fPIC", "-o", "lib/libl.so", "l.c"}, {"-o", "p", "p.c", "-Llib", "-ll"}} {
		if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	lib := filepath.Join(dir, "lib", "libl.so")
	env := func(value string) []string { return []string{"LD_LIBRARY_PATH=/none", "LD_LIBRARY_PATH=" + value} }
	for name, g := range map[string]linux.Guest{
		"an included program's, beside a scheduler": {Command: []string{"/bin/true"}, Scheduler: []string{"/bin/true"},
			Include: []string{"p:/bin/mine"}, Env: env("lib")},
		"an included program's": {Command: []string{"/bin/true"}, Include: []string{"p:/bin/mine"}, Env: env("lib")},
		"the command's":         {Command: []string{"./p"}, Env: env("lib")},
		"the scheduler's":       {Command: []string{"/bin/true"}, Scheduler: []string{"./p"}, Env: env(filepath.Dir(lib))},
	} {
		if _, files, _ := described(t, g); files[lib] == "" {
			t.Errorf("%s library is missing", name)
		}
	}
	t.Setenv("LD_LIBRARY_PATH", filepath.Dir(lib))
	for name, g := range map[string]linux.Guest{
		"this process's":        {Command: []string{"./p"}},
		"relative to elsewhere": {Command: []string{"/bin/true"}, Scheduler: []string{"./p"}, Env: env("lib")},
	} {
		g.Kernel = kernel(t)
		if _, _, err := g.Config(); !errors.Is(err, initramfs.ErrLibrary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		guest linux.Guest
		want  string
	}{
		{linux.Guest{}, linux.Cmdline("x86_64")},
		{linux.Guest{Append: "a b"}, linux.Cmdline("x86_64") + " a b"},
		{linux.Guest{Append: "a", Verbose: true}, linux.Cmdline("x86_64") + " loglevel=7 a"},
		{linux.Guest{Append: "a", Verbose: true, CmdlineOnly: "mine"}, "mine"},
	} {
		tc.guest.Command = []string{"/bin/sh"}
		if cfg, _, _ := described(t, tc.guest); cfg.Cmdline != tc.want {
			t.Errorf("%q, want %q", cfg.Cmdline, tc.want)
		}
	}
}

// What is of no use is told by the field that has it.
func TestRefusals(t *testing.T) {
	good, command := kernel(t), []string{"true"}
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		guest linux.Guest
		says  string
	}{
		"no command": {linux.Guest{Kernel: good}, "Command: there is none"},
		"bad command": {linux.Guest{Kernel: good, Command: []string{dir}},
			"Command: " + dir + " can't be put into the guest"},
		"no kernel": {linux.Guest{Kernel: "/no/such/kernel", Command: command}, "Kernel: open /no/such/kernel"},
		"bad kernel": {linux.Guest{Kernel: "/proc/self/status", Command: command},
			"Kernel /proc/self/status: bad kernel: neither a bzImage nor an ELF file"},
		"no include": {linux.Guest{Kernel: good, Command: command, Include: []string{"/no/such/file:/x"}},
			"Include /no/such/file:/x: /no/such/file can't"},
		"bad env": {linux.Guest{Kernel: good, Command: command, Env: []string{"=b"}}, `Env "=b": it is NAME=VALUE`},
		"no initrd": {linux.Guest{Kernel: good, Command: command, Initrd: "/no/such/initrd"},
			"Initrd: open /no/such/initrd"},
		"no DST": {linux.Guest{Kernel: good, Command: command, Include: []string{dir + ":"}},
			"Include " + dir + ":: it is SRC, which has the same path in the guest, or SRC:DST; neither can be empty"},
		"no SRC": {linux.Guest{Kernel: good, Command: command, Include: []string{":/x"}}, "Include :/x: it is SRC"},
		"bad initrd": {linux.Guest{Kernel: good, Command: command, Initrd: good},
			"Initrd " + good + ": the base initramfs can't be read"},
		"initrd folder": {linux.Guest{Kernel: good, Command: command, Initrd: dir},
			"Initrd " + dir + ": it is no plain file"},
		"no sysroot": {linux.Guest{Kernel: good, Command: command, Sysroot: "/no/such"},
			"Sysroot /no/such: there is no such folder"},
		"bad scheduler": {linux.Guest{Kernel: good, Command: command, Scheduler: []string{dir}},
			"Scheduler: " + dir + " can't be put into the guest"},
	} {
		_, files, err := tc.guest.Config()
		var field *linux.FieldError
		if !errors.As(err, &field) || files != nil || !strings.HasPrefix(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}
