// Package initramfs builds a guest's initial RAM file system on the fly: files from the host, a program with everything
// that it needs to start, and content from memory. Nothing is copied before it is written, straight to where the guest
// will find it.
package initramfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"syscall"

	"github.com/u-root/u-root/pkg/cpio"
)

// ErrFile means that a file can't be put into an archive.
var ErrFile = errors.New("can't be put into the guest")

// Archive is an initramfs to be written. The same files and calls give the same bytes, whatever the order of the calls;
// if two calls name the same path, the later one counts.
type Archive struct {
	// Sysroot is a folder on the host that is used as the root: programs are looked up there first, their interpreters
	// and libraries there only. "" is this host's own root.
	Sysroot string
	// Arch is the guest's architecture, as vm.Board names it; "" is any.
	Arch string
	// LibraryPath is programs' LD_LIBRARY_PATH in the guest, and Dir the folder in which they are started, to which its
	// relative folders are relative; "" is this process's.
	LibraryPath, Dir string

	entries []*entry
	leftOut []string
	laidOut []cpio.Record
	base    struct {
		io.ReaderAt
		size int64
		*tree
	}
}

// New returns an archive that contains only a console.
func New() *Archive {
	a := &Archive{}
	a.put(entry{Record: cpio.CharDev("dev/console", 0o600, 5, 1)})
	return a
}

// SetBase puts another initramfs of n bytes in front of this one. It may be several archives, one after the other, each
// uncompressed or compressed with gzip, xz, zstd or lz4. Its folders and links are read at once, because they stay: a
// file whose path goes through one of its links is placed where the link leads. It fails with ErrBase if the base can't
// be read.
func (a *Archive) SetBase(r io.ReaderAt, n uint64) error {
	if n > math.MaxInt64 {
		return fmt.Errorf("%w: %d bytes", ErrBase, n)
	}
	tree, err := readTree(r, int64(n), maxUnpacked)
	if err != nil {
		return err
	}
	a.base.ReaderAt, a.base.size, a.base.tree, a.laidOut = r, int64(n), tree, nil
	return nil
}

func (a *Archive) put(e entry) {
	a.entries, a.laidOut = append(a.entries, &e), nil
}

// AddText adds a file with the given content.
func (a *Archive) AddText(path, text string, mode os.FileMode) {
	a.AddBytes(path, []byte(text), mode)
}

// AddBytes is like AddText for any content, which must not be changed before it is written.
func (a *Archive) AddBytes(path string, content []byte, mode os.FileMode) {
	info := cpio.Info{Name: inside(path), Mode: cpio.S_IFREG | uint64(mode.Perm())}
	a.put(entry{Record: cpio.StaticRecord(content, info)})
}

// AddFile adds the file at a path on the host as a plain file at a path in the guest, with its mode. Hard links to one
// file are hard links in the guest, too.
func (a *Archive) AddFile(host, guest string) error {
	info, err := os.Stat(host)
	if err != nil {
		return cantPut(host, err)
	}
	name, stat := inside(guest), status(info)
	switch {
	case !info.Mode().IsRegular():
		return cantPut(host, fmt.Errorf("it is no plain file but %s", kind(info.Mode())))
	case info.Size() > math.MaxUint32:
		const most = math.MaxUint32 // the newc format has 8 digits for it
		return cantPut(host, fmt.Errorf("it has %d bytes, an initramfs takes at most %d a file", info.Size(), most))
	case name == "" || name == cpio.Trailer:
		return cantPut(host, fmt.Errorf("no file can be /%s there", name))
	}
	f, err := os.Open(host) // whether it can be read is better known now than in the middle of the archive
	if err != nil {
		return cantPut(host, err)
	}
	f.Close()
	e := entry{Record: cpio.Record{
		ReaderAt: &lazyFile{path: host, size: info.Size()},
		Info:     cpio.Info{Name: name, Mode: cpio.S_IFREG | uint64(stat.Mode&0o7777), FileSize: uint64(info.Size())},
	}}
	if stat.Nlink > 1 {
		e.inode = inode{uint64(stat.Dev), stat.Ino}
	}
	a.put(e)
	return nil
}

func cantPut(path string, err error) error { return fmt.Errorf("%s %w: %w", path, ErrFile, err) }

// status is what the host's kernel says of a file.
func status(info fs.FileInfo) syscall.Stat_t {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return *s
	}
	return syscall.Stat_t{Mode: uint32(info.Mode().Perm())}
}

func kind(mode fs.FileMode) string {
	switch mode.Type() {
	case 0:
		return "a plain file"
	case fs.ModeDir:
		return "a folder"
	case fs.ModeSocket:
		return "a socket"
	case fs.ModeNamedPipe:
		return "a named pipe"
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return "a device"
	}
	return mode.Type().String()
}

// LeftOut says what was left out so far, and why.
func (a *Archive) LeftOut() []string { return a.leftOut }

// AddTree adds a file, or a folder with everything in it; modes and links are kept. Sockets, named pipes and devices in
// it are left out, because nothing of the host would be behind them: see LeftOut. If host itself is a link, the file
// that it leads to is added: at guest or, if that is the same path, in its own place, with the link to it.
func (a *Archive) AddTree(host, guest string) error {
	info, err := os.Lstat(host)
	if err != nil {
		return cantPut(host, err)
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return a.addTree(host, guest)
	}
	real, err := filepath.EvalSymlinks(host)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return cantPut(host, err)
	}
	if inside(host) != inside(guest) {
		return a.addTree(real, guest)
	}
	target, err := os.Readlink(host)
	if err != nil {
		return cantPut(host, err)
	}
	if filepath.Join(filepath.Dir(host), target) != real {
		target = real // the folders that lead to it are no links in the guest
	}
	a.put(entry{Record: cpio.Symlink(inside(guest), target)})
	return a.addTree(real, real)
}

func (a *Archive) addTree(host, guest string) error {
	return filepath.WalkDir(host, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return cantPut(path, err)
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
				return cantPut(path, err)
			}
			a.put(entry{Record: cpio.Symlink(to, target)})
		case d.IsDir():
			info, err := d.Info()
			if err != nil {
				return cantPut(path, err)
			}
			if to != "" {
				a.put(entry{Record: cpio.Directory(to, uint64(status(info).Mode&0o7777))})
			}
		case !d.Type().IsRegular() && path != host:
			a.leftOut = append(a.leftOut, fmt.Sprintf("%q, %s", path, kind(d.Type())))
		default:
			return a.AddFile(path, to)
		}
		return nil
	})
}

const headerLen = 110 // newc: cpio(5), "New ASCII Format"

func round4(n uint64) uint64 { return (n + 3) &^ 3 }

func recordSize(name string, size uint64) uint64 {
	return round4(headerLen+uint64(len(name))+1) + round4(size)
}

// padding is how many zeros follow the base. Linux's lz4 takes what follows for a block, unless that is zero.
func (a *Archive) padding() int64 {
	n := -a.base.size & 3
	if a.base.tree != nil && a.base.lz4 {
		n += 8
	}
	return n
}

// Size returns how many bytes WriteTo writes.
func (a *Archive) Size() uint64 {
	records, err := a.records()
	if err != nil {
		return 0 // WriteTo says so
	}
	n := uint64(a.base.size+a.padding()) + recordSize(cpio.Trailer, 0)
	for _, r := range records {
		size := r.FileSize
		if r.ReaderAt == nil {
			size = 0
		}
		n += recordSize(r.Name, size)
	}
	return n
}

// WriteTo writes the archive, sorted by name. If links lead files to places where they can't be, it writes nothing and
// fails with ErrFile.
func (a *Archive) WriteTo(to io.Writer) (int64, error) {
	records, err := a.records()
	if err != nil {
		return 0, err
	}
	w := &counter{w: to}
	if a.base.ReaderAt != nil {
		n, err := io.Copy(w, io.NewSectionReader(a.base, 0, a.base.size))
		if err == nil && n != a.base.size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return w.n, fmt.Errorf("%w: %d of %d bytes: %w", ErrBase, n, a.base.size, err)
		}
		if _, err := w.Write(make([]byte, a.padding())); err != nil {
			return w.n, err
		}
	}
	for _, r := range records {
		// A writer for each: one for all of them writes a name only once.
		if err := cpio.Newc.Writer(w).WriteRecord(r); err != nil {
			return w.n, cantPut("/"+r.Name, err)
		}
	}
	err = cpio.WriteTrailer(cpio.Newc.Writer(w))
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
