package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"github.com/ktstr/ktstr-vmm/internal/elffile"
)

// ErrModule means that a kernel has no module of a name, or one that can't be used.
var ErrModule = errors.New("kernel module")

// maxModule is how much a module may unpack to, in bytes. With its DWARF, a large one has some 100 MB.
const maxModule = 256 << 20

// Module is a kernel module to be loaded.
type Module struct {
	Name    string // as the kernel lists it in /proc/modules
	Params  string // NAME=VALUE..., as init_module(2) takes them
	Content []byte // an ELF file, unpacked
}

// LoadOrder returns modules that are asked for, each as 'NAME [PARAM=VALUE...]', and all that they need, in an order in
// which the kernel can load them: what a module needs comes before it, and nothing twice. A name is the file's without
// .ko, and a dash in it the same as an underscore. What is built into the kernel needs no loading and is left out. It
// fails with ErrModule.
func (f Files) LoadOrder(wanted []string) ([]Module, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	if f.Modules == "" {
		return nil, fmt.Errorf("%w %s: none are known of %s, which is neither in a build tree nor in an unpacked package",
			ErrModule, wanted[0], f.Image)
	}
	order := loadOrder{dir: f.Modules, done: map[string]bool{}}
	if err := order.findAll(); err != nil {
		return nil, err
	}
	params := map[string]string{}
	for _, w := range wanted {
		name, rest, _ := strings.Cut(strings.TrimSpace(w), " ")
		name, rest = moduleName(name), strings.TrimSpace(rest)
		if before := params[name]; before != "" && before != rest {
			return nil, fmt.Errorf("%w %s: asked for with %q and with %q", ErrModule, name, before, rest)
		}
		if order.builtIn[name] && rest != "" {
			return nil, fmt.Errorf("%w %s: it is built in, and takes %q on the kernel's command line as %s.PARAM=VALUE",
				ErrModule, name, rest, name)
		}
		params[name] = rest
	}
	for _, w := range wanted {
		name, _, _ := strings.Cut(strings.TrimSpace(w), " ")
		if err := order.add(moduleName(name), ""); err != nil {
			return nil, err
		}
	}
	for i, m := range order.modules {
		order.modules[i].Params = params[m.Name]
	}
	return order.modules, nil
}

// moduleName is the name by which a kernel knows the module in a file, or that a user wrote.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadOrder is the order as it comes about.
type loadOrder struct {
	dir     string
	files   map[string]string // by the modules' names
	builtIn map[string]bool
	done    map[string]bool // added, or about to be
	modules []Module
}

// findAll finds the modules that there are. A build tree may have others below it, installed for a package.
func (o *loadOrder) findAll() error {
	list, err := os.ReadFile(filepath.Join(o.dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	o.builtIn = map[string]bool{}
	for line := range strings.Lines(string(list)) {
		o.builtIn[moduleName(strings.TrimSpace(line))] = true
	}
	o.files = map[string]string{}
	return filepath.WalkDir(o.dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != o.dir && (d.Name() == ".git" || strings.HasSuffix(path, "/lib/modules")):
			return fs.SkipDir
		case !d.IsDir() && isModule(d.Name()):
			o.files[moduleName(d.Name())] = path
		}
		return nil
	})
}

func isModule(name string) bool {
	_, packing, ok := strings.Cut(name, ".ko")
	return ok && (packing == "" || unpackers[packing] != nil)
}

// add adds a module, after what it needs.
func (o *loadOrder) add(name, neededBy string) error {
	if o.done[name] || o.builtIn[name] {
		return nil
	}
	o.done[name] = true
	file, ok := o.files[name]
	if !ok {
		if neededBy != "" {
			neededBy = ", which " + neededBy + " needs,"
		}
		return fmt.Errorf("%w %s%s is neither built in nor below %s", ErrModule, name, neededBy, o.dir)
	}
	content, err := readModule(file)
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrModule, file, err)
	}
	needs, err := dependencies(content)
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrModule, file, err)
	}
	for _, n := range needs {
		if err := o.add(moduleName(n), name); err != nil {
			return err
		}
	}
	o.modules = append(o.modules, Module{Name: name, Content: content})
	return nil
}

// unpackers are the ways in which modules are packed, by what the file's name has behind .ko. Linux,
// scripts/Makefile.modinst.
var unpackers = map[string]func(io.Reader) (io.Reader, error){
	".gz": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	".xz": func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, maxModule) },
	".zst": func(r io.Reader) (io.Reader, error) {
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule))
	},
}

// readModule returns a module's content, unpacked.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = bufio.NewReader(f)
	if unpack := unpackers[filepath.Ext(file)]; unpack != nil {
		if r, err = unpack(r); err != nil {
			return nil, err
		}
	}
	content, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(content) > maxModule {
		err = fmt.Errorf("it has more than %d bytes", maxModule)
	}
	return content, err
}

// dependencies are the modules that one needs, as its section .modinfo names them: Linux, scripts/mod/modpost.c,
// add_depends.
func dependencies(content []byte) ([]string, error) {
	file, err := elffile.Open(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	info, err := elffile.Data(section, maxModule)
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if needs, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(needs) > 0 {
			return strings.Split(string(needs), ","), nil
		}
	}
	return nil, nil
}
