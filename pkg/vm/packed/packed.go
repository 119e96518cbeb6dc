// Package packed unpacks kernels: what the files of boards that unpack themselves carry, and files that are packed as
// a whole. Nothing that a file says of itself makes it take more memory than a kernel does.
package packed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// ErrPayload means that the host can't unpack what a kernel's file carries, for all that the file may be sound.
var ErrPayload = errors.New("kernel payload that the host can't unpack")

// Largest is what a kernel can unpack to: more than those of distributions, which take some 60 MiB.
const Largest = 256 << 20

const (
	magicLen = 6
	// SizeField is how many bytes of a payload's end are its unpacked size. The kernel's build puts them there,
	// but for gzip, whose format ends with them: linux, scripts/Makefile.lib.
	SizeField = 4
)

type packing struct {
	name, magic string
	open        func(packed *io.SectionReader, size uint32) (io.ReadCloser, error)
}

// packings are the ways to pack a kernel that distributions use; bzip2, LZMA and LZO are not known here.
var packings = []packing{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", "\xfd7zXZ\x00", openXz},
	{"lz4", lz4Magic, openLz4},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
}

// Open returns a reader of what a part of a file unpacks to, as it is unpacked: the length bytes at start, the last of
// which are its SizeField. It fails with ErrPayload for what is packed in a way not known here, and for more than room
// or Largest; with vm.ErrKernel for what is broken.
//
// The reader ends after the bytes that the size field says, and fails where there are less or more. Nothing may be
// read after Close.
func Open(file io.ReaderAt, start, length int64, room uint32) (io.ReadCloser, error) {
	if length < magicLen+SizeField {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrPayload, length)
	}
	var magic [magicLen]byte
	var field [SizeField]byte
	err := readAt(file, magic[:], start)
	if err == nil {
		err = readAt(file, field[:], start+length-SizeField)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: 0x%x bytes of payload at file offset 0x%x: %w; the file is cut short", vm.ErrKernel,
			length, start, err)
	}
	size, room := binary.LittleEndian.Uint32(field[:]), min(room, Largest)
	i := slices.IndexFunc(packings, func(p packing) bool { return strings.HasPrefix(string(magic[:]), p.magic) })
	switch {
	case i < 0:
		return nil, fmt.Errorf("%w: it begins with % x; known are %s", ErrPayload, magic, packingNames())
	case size > room || length > int64(room):
		return nil, fmt.Errorf("%w: 0x%x bytes that unpack to 0x%x, the limit is 0x%x", ErrPayload, length, size, room)
	}
	p := packings[i]
	if p.name != "gzip" {
		length -= SizeField
	}
	r, err := p.open(io.NewSectionReader(file, start, length), size)
	if err != nil {
		return nil, fmt.Errorf("%w: %s payload: %w", vm.ErrKernel, p.name, err)
	}
	return &unpacker{ReadCloser: r, name: p.name, size: size, left: size}, nil
}

// Gzip returns a reader of what a file unpacks to that is packed as a whole. Reading fails for what is broken, and
// behind Largest bytes. Nothing may be read after Close.
func Gzip(file io.ReaderAt) (io.ReadCloser, error) {
	r, err := openGzip(io.NewSectionReader(file, 0, math.MaxInt64), 0)
	if err != nil {
		return nil, fmt.Errorf("%w: gzip: %w", vm.ErrKernel, err)
	}
	return &bounded{r, Largest}, nil
}

type bounded struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if b.left -= n; b.left < 0 {
		return n, fmt.Errorf("it unpacks to more than 0x%x bytes", Largest)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("gzip, at byte 0x%x of what it unpacks to: %w", Largest-b.left, err)
	}
	return n, err
}

func packingNames() string {
	var names []string
	for _, p := range packings {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// readAt is a ReadAt for which a file that ends early is an io.ErrUnexpectedEOF, and one that ends here is none.
func readAt(file io.ReaderAt, p []byte, off int64) error {
	n, err := file.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// unpacker is a decompressor that must give as many bytes as the image says.
type unpacker struct {
	io.ReadCloser
	name       string
	size, left uint32
}

// Read implements io.Reader.
func (u *unpacker) Read(p []byte) (int, error) {
	if u.left == 0 {
		return 0, u.end()
	}
	n, err := u.ReadCloser.Read(p[:min(uint64(len(p)), uint64(u.left))])
	u.left -= uint32(n)
	switch {
	case err == nil || errors.Is(err, io.EOF) && u.left == 0:
		return n, err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("%s payload, at byte 0x%x of the 0x%x that it unpacks to: %w", u.name, u.size-u.left, u.size, err)
}

// end returns io.EOF if the decompressor has nothing more to give. Only when it is asked for more does
// it compare its checksum.
func (u *unpacker) end() error {
	var more [1]byte
	n, err := io.ReadFull(u.ReadCloser, more[:])
	switch {
	case n > 0:
		return fmt.Errorf("%s payload: it unpacks to more than the 0x%x bytes that the image says", u.name, u.size)
	case errors.Is(err, io.EOF):
		return io.EOF
	}
	return fmt.Errorf("%s payload, behind the 0x%x bytes that it unpacks to: %w", u.name, u.size, err)
}
