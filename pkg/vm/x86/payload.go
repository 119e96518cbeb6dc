package x86

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// ErrPayload means that the host can't unpack what a bzImage carries, for all that the image may be
// sound: a guest that enters the image unpacks it by itself.
var ErrPayload = errors.New("kernel payload that the host can't unpack")

// Where the setup header says what the image carries: Linux boot protocol 2.08.
const (
	offPayloadOffset = 0x248 // u32, from the start of the protected-mode kernel
	offPayloadLength = 0x24c // u32

	magicLen  = 6
	sizeField = 4 // the payload ends with its unpacked size; for gzip that is in the format already

	// largest is more than the kernels of distributions, which unpack to some 60 MiB.
	largest = 256 << 20
)

type packing struct {
	name, magic string
	open        func(packed *io.SectionReader, size uint32) (io.ReadCloser, error)
}

// packings are the ways to pack a kernel that distributions use. bzip2, LZMA and LZO are left to the guest.
var packings = []packing{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", "\xfd7zXZ\x00", openXz},
	{"lz4", lz4Magic, openLz4},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
}

// payload returns a reader of the ELF file that the bzImage in file unpacks, as it is unpacked. head
// is the image's first bytes, setupEnd or more of them. It fails with ErrPayload for a payload that is
// packed in a way not known here, and with vm.ErrKernel for a broken one.
//
// The reader ends after the bytes that the image says, which are no more than its init_size: that much
// memory the kernel needs when it unpacks itself, packed and unpacked. Nothing may be read after Close.
func payload(file io.ReaderAt, head []byte) (io.ReadCloser, error) {
	if len(head) < setupEnd {
		return nil, fmt.Errorf("%w: a bzImage of %d bytes; it is cut short", vm.ErrKernel, len(head))
	}
	sectors := int64(head[offSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*sector + int64(le.Uint32(head[offPayloadOffset:]))
	length := int64(le.Uint32(head[offPayloadLength:]))
	if length < magicLen+sizeField {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrPayload, length)
	}
	var magic [magicLen]byte
	var field [sizeField]byte
	err := readAt(file, magic[:], start)
	if err == nil {
		err = readAt(file, field[:], start+length-sizeField)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: 0x%x bytes of payload at file offset 0x%x: %w; the file is cut short",
			vm.ErrKernel, length, start, err)
	}
	size, room := le.Uint32(field[:]), min(le.Uint32(head[offInitSize:]), largest)
	i := slices.IndexFunc(packings, func(p packing) bool { return strings.HasPrefix(string(magic[:]), p.magic) })
	switch {
	case i < 0:
		return nil, fmt.Errorf("%w: it begins with % x; known are %s", ErrPayload, magic, packingNames())
	case size > room || length > int64(room):
		return nil, fmt.Errorf("%w: 0x%x bytes that unpack to 0x%x, the limit is 0x%x", ErrPayload, length, size, room)
	}
	p := packings[i]
	if p.name != "gzip" {
		length -= sizeField
	}
	r, err := p.open(io.NewSectionReader(file, start, length), size)
	if err != nil {
		return nil, fmt.Errorf("%w: %s payload: %w", vm.ErrKernel, p.name, err)
	}
	return &unpacker{ReadCloser: r, name: p.name, size: size, left: size}, nil
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
