package kernel_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
)

// module is an object file with the section that modpost writes.
func module(t *testing.T, depends string) []byte {
	t.Helper()
	gcc, out := testenv.Tool(t, "gcc"), filepath.Join(t.TempDir(), "m.o")
	cmd := exec.Command(gcc, "-c", "-x", "c", "-o", out, "-")
	cmd.Stdin = strings.NewReader(`static const char info[] __attribute__((used, section(".modinfo"))) =
		"license=GPL\0depends=` + depends + `\0name=m\0";`)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	content, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// pack packs a module as its file's name says.
func pack(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	write := func(z io.WriteCloser, err error) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(content); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
	}
	switch filepath.Ext(name) {
	case ".gz":
		write(gzip.NewWriter(&out), nil)
	case ".zst":
		write(zstd.NewWriter(&out))
	case ".xz": // as scripts/Makefile.modinst does
		xz := exec.Command(testenv.Tool(t, "xz"), "--check=crc32", "--lzma2=dict=1MiB", "-c")
		xz.Stdin, xz.Stdout = bytes.NewReader(content), &out
		if err := xz.Run(); err != nil {
			t.Fatal(err)
		}
	default:
		return content
	}
	return out.Bytes()
}

// modulesTree is a package's tree of modules: by path, what each depends on.
func modulesTree(t *testing.T, modules map[string]string, builtIn string) kernel.Files {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtIn), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, depends := range modules {
		path := filepath.Join(dir, name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755),
			os.WriteFile(path, pack(t, name, module(t, depends)), 0o644))
		if err != nil {
			t.Fatal(err)
		}
	}
	return kernel.Files{Image: "boot/vmlinuz", Modules: dir}
}

func TestLoadOrder(t *testing.T) {
	files := modulesTree(t, map[string]string{
		"kernel/net/top.ko.xz":            "left-side,right",
		"kernel/net/left-side.ko.zst":     "base",
		"kernel/net/right.ko.gz":          "base",
		"kernel/lib/base.ko":              "",
		"kernel/lib/alone.ko":             "",
		"kernel/lib/round.ko":             "about", // no build makes such, but neither may it be without end
		"kernel/lib/about.ko":             "round",
		"debian/lib/modules/1/base.ko.xz": "what-another-build-installed",
	}, "kernel/drivers/tty/serial-core.ko\n")
	for name, tc := range map[string]struct{ wanted, want []string }{
		"nothing":                {nil, nil},
		"what it needs is first": {[]string{"top"}, []string{"base ", "left_side ", "right ", "top "}},
		"in the order asked for": {[]string{"alone", "base"}, []string{"alone ", "base "}},
		"nothing twice":          {[]string{"base", "right", "base"}, []string{"base ", "right "}},
		"a dash":                 {[]string{"left-side"}, []string{"base ", "left_side "}},
		"an underscore":          {[]string{"left_side"}, []string{"base ", "left_side "}},
		"parameters":             {[]string{"right  a=1 b=2,3", "base x"}, []string{"base x", "right a=1 b=2,3"}},
		"built in":               {[]string{"serial_core", "alone"}, []string{"alone "}},
		"a circle":               {[]string{"round"}, []string{"about ", "round "}},
	} {
		t.Run(name, func(t *testing.T) {
			modules, err := files.LoadOrder(tc.wanted)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range modules {
				got = append(got, m.Name+" "+m.Params)
				if !bytes.HasPrefix(m.Content, []byte("\x7fELF")) {
					t.Errorf("%s: % .10x", m.Name, m.Content)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLoadOrderFails(t *testing.T) {
	files := modulesTree(t, map[string]string{"a.ko": "gone", "cut.ko.xz": ""}, "kernel/serial_core.ko\n")
	cut := filepath.Join(files.Modules, "cut.ko.xz")
	content, err := os.ReadFile(cut)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(cut, content[:len(content)/2], 0o644),
		os.WriteFile(filepath.Join(files.Modules, "text.ko"), []byte(strings.Repeat("text", 99)), 0o644)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		files  kernel.Files
		module string
		says   string
	}{
		"not there":        {files, "b", "kernel module b is neither built in nor below " + files.Modules},
		"needs what isn't": {files, "a", "kernel module gone, which a needs, is neither built in nor below "},
		"cut":              {files, "cut", "cut.ko.xz: "},
		"no ELF file":      {files, "text", "text.ko: bad magic number"},
		"built in":         {files, "serial_core x=1", `it is built in, and takes "x=1" on the kernel's command line`},
		"no modules":       {kernel.Files{Image: "/bzImage"}, "a", "/bzImage, which is neither in a build tree nor"},
	} {
		_, err := tc.files.LoadOrder([]string{tc.module})
		if !errors.Is(err, kernel.ErrModule) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
