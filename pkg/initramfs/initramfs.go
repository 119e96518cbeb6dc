// Package initramfs builds a guest's initial RAM file system on the fly: files of the host, a
// program with all that it needs to start, and content that is in memory. Nothing is copied before
// it is written, straight to where the guest will find it.
package initramfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"github.com/u-root/u-root/pkg/ldd"
)

// ErrFile is a file that can't be put into an archive, for errors.Is.
var ErrFile = errors.New("can't be put into the guest")

// Archive is an initramfs to be. The same files and calls give the same bytes, whatever the order
// of the calls.
type Archive struct {
	records map[string]cpio.Record
	base    io.Reader
	baseLen uint64
}

// New returns an archive with nothing in it but a console.
func New() *Archive {
	a := &Archive{records: map[string]cpio.Record{}}
	a.put(cpio.CharDev("dev/console", 0o600, 5, 1))
	return a
}

// SetBase puts another initramfs of n bytes below this one; it may be compressed.
func (a *Archive) SetBase(r io.Reader, n uint64) { a.base, a.baseLen = r, n }

// put adds a record and the folders that lead to it. What is there is replaced, but a folder that
// was added by itself keeps its mode.
func (a *Archive) put(r cpio.Record) {
	r = cpio.MakeReproducible(r)
	for dir := filepath.Dir(r.Name); dir != "."; dir = filepath.Dir(dir) {
		if _, ok := a.records[dir]; !ok {
			a.records[dir] = cpio.MakeReproducible(cpio.Directory(dir, 0o755))
		}
	}
	a.records[r.Name] = r
}

// inside is a guest's path as an archive has it.
func inside(path string) string { return strings.TrimPrefix(filepath.Clean("/"+path), "/") }

// AddText adds a file with the given content.
func (a *Archive) AddText(path, text string, mode os.FileMode) {
	a.AddBytes(path, []byte(text), mode)
}

// AddBytes is AddText for any content, which must not be changed before it is written.
func (a *Archive) AddBytes(path string, content []byte, mode os.FileMode) {
	a.put(cpio.StaticRecord(content, cpio.Info{Name: inside(path), Mode: cpio.S_IFREG | uint64(mode.Perm())}))
}

// AddFile adds the file at a host's path as a plain file at a guest's path, with its mode.
func (a *Archive) AddFile(host, guest string) error {
	info, err := os.Stat(host)
	if err != nil {
		return fmt.Errorf("%s %w: %w", host, ErrFile, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s %w: it is no plain file but %v", host, ErrFile, info.Mode().Type())
	}
	a.put(cpio.Record{
		ReaderAt: &lazyFile{path: host, size: info.Size()},
		Info:     cpio.Info{Name: inside(guest), Mode: cpio.S_IFREG | uint64(info.Mode().Perm()), FileSize: uint64(info.Size())},
	})
	return nil
}

// AddTree adds a file, a link or a folder with all that is in it; modes and links are kept.
func (a *Archive) AddTree(host, guest string) error {
	return filepath.WalkDir(host, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%s %w: %w", path, ErrFile, err)
		}
		rel, err := filepath.Rel(host, path)
		if err != nil {
			return err
		}
		to := inside(filepath.Join(guest, rel))
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return fmt.Errorf("%s %w: %w", path, ErrFile, err)
			}
			a.put(cpio.Symlink(to, target))
		case d.IsDir():
			info, err := d.Info()
			if err != nil {
				return fmt.Errorf("%s %w: %w", path, ErrFile, err)
			}
			if to != "" {
				a.put(cpio.Directory(to, uint64(info.Mode().Perm())))
			}
		default:
			return a.AddFile(path, to)
		}
		return nil
	})
}

// AddProgram adds a program at its own path, with its interpreter and its libraries: an ELF file's
// loader says which, a script's first line does.
func (a *Archive) AddProgram(path string) error { return a.addProgram(path, 0) }

func (a *Archive) addProgram(path string, depth int) error {
	if depth > 4 { // as the kernel's own limit for scripts
		return fmt.Errorf("%s %w: too many interpreters", path, ErrFile)
	}
	if err := a.AddFile(path, path); err != nil {
		return err
	}
	interpreter, argument, err := shebang(path)
	if err != nil {
		return err
	}
	if interpreter != "" {
		if filepath.Base(interpreter) == "env" && argument != "" {
			if program, err := LookPath(argument); err == nil {
				if err := a.addProgram(program, depth+1); err != nil {
					return err
				}
			}
		}
		return a.addProgram(interpreter, depth+1)
	}
	libraries, err := ldd.FList(path)
	if err != nil {
		return nil // no dynamic ELF file: what it is, the guest's kernel will say
	}
	for _, lib := range libraries {
		if lib == path {
			continue
		}
		if err := a.AddFile(lib, lib); err != nil {
			return err
		}
	}
	return nil
}

// shebang reads a script's first line.
func shebang(path string) (interpreter, argument string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", fmt.Errorf("%s %w: %w", path, ErrFile, err)
	}
	defer f.Close()
	head := make([]byte, 256) // BINPRM_BUF_SIZE
	n, _ := io.ReadFull(f, head)
	line, ok := strings.CutPrefix(string(head[:n]), "#!")
	if !ok {
		return "", "", nil
	}
	line, _, _ = strings.Cut(line, "\n")
	interpreter, argument, _ = strings.Cut(strings.TrimSpace(line), " ")
	return interpreter, strings.TrimSpace(argument), nil
}

// LookPath finds a program as a shell does, and returns its absolute path.
func LookPath(name string) (string, error) {
	if !strings.Contains(name, "/") {
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
				return filepath.Abs(path)
			}
		}
		return "", fmt.Errorf("%s: %w on PATH", name, fs.ErrNotExist)
	}
	return filepath.Abs(name)
}

const headerLen = 110 // newc: cpio(5), "New ASCII Format"

func round4(n uint64) uint64 { return (n + 3) &^ 3 }

func recordSize(name string, size uint64) uint64 {
	return round4(headerLen+uint64(len(name))+1) + round4(size)
}

// Size is how many bytes WriteTo writes.
func (a *Archive) Size() uint64 {
	n := round4(a.baseLen) + recordSize(cpio.Trailer, 0)
	for name, r := range a.records {
		size := r.FileSize
		if r.ReaderAt == nil {
			size = 0
		}
		n += recordSize(name, size)
	}
	return n
}

// WriteTo writes the archive, sorted by name.
func (a *Archive) WriteTo(to io.Writer) (int64, error) {
	w := &counter{w: to}
	if a.base != nil {
		if n, err := io.Copy(w, a.base); err != nil || uint64(n) != a.baseLen {
			return w.n, fmt.Errorf("base initramfs: %d of %d bytes: %w", n, a.baseLen, errors.Join(err, io.ErrUnexpectedEOF))
		}
		if _, err := w.Write(make([]byte, round4(a.baseLen)-a.baseLen)); err != nil {
			return w.n, err
		}
	}
	records := cpio.Newc.Writer(w)
	for _, name := range slices.Sorted(maps.Keys(a.records)) {
		if err := records.WriteRecord(a.records[name]); err != nil {
			return w.n, fmt.Errorf("%s: %w", name, err)
		}
	}
	err := cpio.WriteTrailer(records)
	return w.n, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// lazyFile is a file's first size bytes; it is open only while it is read.
type lazyFile struct {
	path string
	size int64
	file *os.File
}

func (l *lazyFile) ReadAt(p []byte, off int64) (int, error) {
	if l.file == nil {
		f, err := os.Open(l.path)
		if err != nil {
			return 0, err
		}
		l.file = f
	}
	return io.NewSectionReader(l.file, 0, l.size).ReadAt(p, off)
}

// Close is called by the archive's writer when the file is written.
func (l *lazyFile) Close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
