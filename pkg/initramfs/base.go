package initramfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// ErrBase means that the entries of a base initramfs can't be read. Such a base is refused: a kernel that can't read it
// stops there and never sees the archive that follows, and for a kernel that can, it is not known which of the
// archive's folders would replace a link.
var ErrBase = errors.New("the base initramfs can't be read")

// What is read of a base is bounded: a file of a megabyte can unpack to a terabyte.
const (
	maxUnpacked = 4 << 30  // bytes that come out of its compressed parts
	maxNames    = 64 << 20 // bytes of the names that are kept
	maxLookups  = 4 << 30  // bytes of the paths that are looked up to follow its links
	maxParts    = 1024     // compressed parts
)

// tree is what a kernel makes of a base: its folders and links. Linux's init/initramfs.c says what becomes of
// each entry.
type tree struct {
	dirs   map[string]bool   // by path: whether something is in it
	links  map[string]string // their targets
	shared map[string]bool   // plain files with more than one name

	names, lookups int64  // bytes that are kept, that were looked up
	unpack         int64  // bytes that may still be unpacked
	lz4            bool   // whether its last part is packed with lz4
	lz4Block       []byte // what one block of that unpacks to
}

func newTree(unpack int64) *tree {
	return &tree{
		dirs:   map[string]bool{"": true, "dev": true, "root": false}, // the kernel's own: usr/default_cpio_list
		links:  map[string]string{},
		shared: map[string]bool{},
		unpack: unpack,
	}
}

func (t *tree) readlink(path string) (string, bool) {
	t.lookups += int64(len(path))
	target, ok := t.links[path]
	return target, ok
}

// readTree reads the first n bytes of r: archives in the newc format, each of them plain or compressed, with
// zeros between them. No more than so many bytes are unpacked.
func readTree(r io.ReaderAt, n, unpack int64) (*tree, error) {
	t := newTree(unpack)
	for at, parts := int64(0), 0; at < n; parts++ {
		s := newStream(r, at, n)
		if err := t.archives(s); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBase, err)
		}
		if at = s.pos; at == n {
			break
		}
		next, err := t.compressed(r, at, n)
		if err == nil && parts == maxParts {
			err = fmt.Errorf("more than %d compressed parts", maxParts)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: at byte %d: %w", ErrBase, at, err)
		}
		at = next
	}
	return t, nil
}

// archives reads what is not compressed, up to the stream's end or something else.
func (t *tree) archives(s *stream) error {
	for {
		c, err := s.r.Peek(1)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case c[0] == 0:
			zeros, _ := s.r.Peek(s.r.Buffered())
			err = s.skip(int64(len(zeros) - len(bytes.TrimLeft(zeros, "\x00"))))
		case c[0] == '0' && s.pos%4 == 0:
			t.lz4 = false
			err = t.archive(s)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// archive reads one archive's entries, up to its trailer.
func (t *tree) archive(s *stream) error {
	var name, target [maxPath]byte
	for {
		if _, err := s.r.Peek(1); err == io.EOF {
			return nil
		}
		at := s.pos
		h, err := readHeader(s)
		if err == nil {
			err = h.readNames(s, &name, &target)
		}
		if err == nil && h.name == cpio.Trailer {
			return nil
		}
		if err == nil {
			err = t.add(h)
		}
		if err != nil {
			return fmt.Errorf("the entry at byte %d: %w", at, err)
		}
	}
}

// entryHeader is what is looked at of an entry.
type entryHeader struct {
	mode, links, size, nameSize int64
	name, target                string
}

func readHeader(s *stream) (*entryHeader, error) {
	var b [headerLen]byte
	if err := s.read(b[:]); err != nil {
		return nil, err
	}
	if magic := string(b[:6]); magic != "070701" && magic != "070702" {
		return nil, fmt.Errorf("it begins with %q and not as the newc format does; cpio -H newc writes that", magic)
	}
	var h entryHeader
	for i, field := range map[int]*int64{1: &h.mode, 4: &h.links, 6: &h.size, 11: &h.nameSize} {
		v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			return nil, err
		}
		*field = int64(v)
	}
	return &h, nil
}

// readNames reads the entry's name and what a link leads to, and skips the rest. What is too long for the
// kernel has no name: it ignores that.
func (h *entryHeader) readNames(s *stream, name, target *[maxPath]byte) error {
	if h.nameSize == 0 || h.nameSize > maxPath {
		return s.skipPadded(h.nameSize, h.size)
	}
	if err := s.read(name[:h.nameSize]); err != nil {
		return err
	}
	if err := s.pad(); err != nil {
		return err
	}
	isLink := h.mode&cpio.S_IFMT == cpio.S_IFLNK
	switch {
	case isLink && h.size <= maxPath:
		if err := s.read(target[:h.size]); err != nil {
			return err
		}
		h.target = text(target[:h.size])
	case isLink, h.mode&cpio.S_IFMT != cpio.S_IFREG && h.size > 0:
		return s.skipPadded(h.size, 0)
	default:
		if err := s.skip(h.size); err != nil {
			return err
		}
	}
	h.name = text(name[:h.nameSize])
	return s.pad()
}

// text is what stands before the first NUL.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// add does with an entry what the kernel will do.
func (t *tree) add(h *entryHeader) error {
	at, err := place(strings.Trim(h.name, "/"), t.readlink)
	if t.lookups > maxLookups {
		return errors.New("its links lead too far")
	}
	dir, name := split(at)
	if _, ok := t.dirs[dir]; err != nil || !ok || name == "" || name == "." || name == ".." {
		return nil // the kernel can't make it
	}
	filled, isDir := t.dirs[at]
	kind := h.mode & cpio.S_IFMT
	if isDir && (filled || kind == cpio.S_IFDIR) {
		return nil // it stays what it is
	}
	delete(t.dirs, at)
	delete(t.links, at)
	delete(t.shared, at)
	t.dirs[dir] = true
	switch {
	case kind == cpio.S_IFDIR:
		t.dirs[at] = false
	case kind == cpio.S_IFLNK:
		t.links[at] = h.target
	case kind == cpio.S_IFREG && h.links > 1:
		t.shared[at] = true
	default:
		return nil
	}
	if t.names += int64(len(at) + len(h.target) + 64); t.names > maxNames {
		return fmt.Errorf("the names of its folders and links take more than %d bytes", maxNames)
	}
	return nil
}

// stream reads forward, and knows where it is.
type stream struct {
	r    *bufio.Reader
	file *io.SectionReader // what r reads, where that can be skipped without reading it
	pos  int64
	end  int64 // of file
}

func newStream(r io.ReaderAt, at, end int64) *stream {
	file := io.NewSectionReader(r, 0, end)
	file.Seek(at, io.SeekStart) // it fails for a negative offset only
	return &stream{r: bufio.NewReader(file), file: file, pos: at, end: end}
}

func (s *stream) read(b []byte) error {
	n, err := io.ReadFull(s.r, b)
	s.pos += int64(n)
	return cut(err)
}

// cut is an end where more was to come.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (s *stream) skip(n int64) error {
	if s.file != nil && n > int64(s.r.Buffered()) {
		if n > s.end-s.pos {
			return io.ErrUnexpectedEOF
		}
		s.pos += n
		if _, err := s.file.Seek(s.pos, io.SeekStart); err != nil {
			return err
		}
		s.r.Reset(s.file)
		return nil
	}
	done, err := s.r.Discard(int(n))
	s.pos += int64(done)
	return cut(err)
}

// pad skips to the next multiple of 4; it may be missing at the end.
func (s *stream) pad() error {
	if err := s.skip(-s.pos & 3); err != io.ErrUnexpectedEOF {
		return err
	}
	if s.file != nil {
		return s.skip(s.end - s.pos)
	}
	return nil
}

func (s *stream) skipPadded(sizes ...int64) error {
	for _, n := range sizes {
		if err := s.skip(n); err != nil {
			return err
		}
		if err := s.pad(); err != nil {
			return err
		}
	}
	return nil
}
