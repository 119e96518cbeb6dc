package initramfs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
)

// Windows and dictionaries that the compressors' highest levels use: zstd --ultra -22, xz -9.
const (
	maxZstdWindow = 128 << 20
	maxXZDict     = 64 << 20
)

// formats are the compressed formats that Linux knows by their first bytes: lib/decompress.c.
var formats = []struct {
	magic, name string
	read        func(t *tree, r io.ReaderAt, at, end int64) (int64, error) // nil: it is not read here
}{
	{"\x1f\x8b", "gzip", (*tree).gzip},
	{"\xfd7zXZ\x00", "xz", (*tree).xz},
	{"\x28\xb5\x2f\xfd", "zstd", (*tree).zstd},
	{lz4Magic, "lz4", (*tree).lz4Legacy},
	{"BZh", "bzip2", nil},
	{"\x5d\x00\x00", "lzma", nil},
	{"\x89LZO\x00\x0d\x0a\x1a", "lzo", nil},
	{"\x04\x22\x4d\x18", "lz4's newer format (lz4 -l writes the one that Linux reads)", nil},
}

const lz4Magic = "\x02\x21\x4c\x18"

// compressed reads one compressed part and returns where it ends.
func (t *tree) compressed(r io.ReaderAt, at, end int64) (int64, error) {
	var head [8]byte
	n, err := r.ReadAt(head[:min(8, end-at)], at)
	if err != nil && err != io.EOF {
		return 0, err
	}
	for _, f := range formats {
		if !bytes.HasPrefix(head[:n], []byte(f.magic)) {
			continue
		}
		if f.read == nil {
			return 0, fmt.Errorf("it is packed with %s; gzip, xz, zstd and lz4 are read here", f.name)
		}
		next, err := f.read(t, r, at, end)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f.name, err)
		}
		t.lz4 = f.magic == lz4Magic
		return next, nil
	}
	return 0, fmt.Errorf("it is neither a cpio archive nor packed: % x", head[:n])
}

// unpacked reads the archives that come out of a decompressor.
func (t *tree) unpacked(z io.Reader) error {
	left := &io.LimitedReader{R: z, N: t.unpack}
	s := &stream{r: bufio.NewReaderSize(left, 16<<10)}
	err := t.archives(s)
	if t.unpack = left.N; t.unpack == 0 {
		return errors.New("it unpacks to more than can be read of it")
	}
	if err != nil {
		return err
	}
	if c, err := s.r.Peek(1); err == nil {
		return fmt.Errorf("a byte 0x%02x where an archive begins", c[0])
	}
	return nil
}

func (t *tree) gzip(r io.ReaderAt, at, end int64) (int64, error) {
	file := io.NewSectionReader(r, at, end-at)
	in := bufio.NewReader(file)
	z, err := gzip.NewReader(in)
	if err != nil {
		return 0, err
	}
	defer z.Close()
	z.Multistream(false)
	if err := t.unpacked(z); err != nil {
		return 0, err
	}
	read, err := file.Seek(0, io.SeekCurrent)
	return at + read - int64(in.Buffered()), err
}

func (t *tree) zstd(r io.ReaderAt, at, end int64) (int64, error) {
	next, err := zstdEnd(r, at, end)
	if err != nil {
		return 0, err
	}
	z, err := zstd.NewReader(io.NewSectionReader(r, at, next-at), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	return next, t.unpacked(z)
}

// zstdEnd is where a frame ends: RFC 8878, 3.1.1.
func zstdEnd(r io.ReaderAt, at, end int64) (int64, error) {
	var b [zstd.HeaderMaxSize]byte
	n, err := r.ReadAt(b[:min(int64(len(b)), end-at)], at)
	if err != nil && err != io.EOF {
		return 0, err
	}
	var head zstd.Header
	if err := head.Decode(b[:n]); err != nil {
		return 0, err
	}
	s := newStream(r, at, end)
	if err := s.skip(int64(head.HeaderSize)); err != nil {
		return 0, err
	}
	for last := false; !last; {
		if err := s.read(b[:3]); err != nil {
			return 0, err
		}
		size := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
		last = size&1 != 0
		if size>>1&3 == 1 { // a byte that is repeated
			size = 1 << 3
		}
		if err := s.skip(size >> 3); err != nil {
			return 0, err
		}
	}
	if head.HasCheckSum {
		err = s.skip(4)
		return s.pos, err
	}
	return s.pos, nil
}

func (t *tree) xz(r io.ReaderAt, at, end int64) (int64, error) {
	in := &tail{r: io.NewSectionReader(r, at, end-at)}
	z, err := xz.NewReader(in, maxXZDict)
	if err != nil {
		return 0, err
	}
	z.Multistream(false)
	if err := t.unpacked(z); err != nil && !(errors.Is(err, xz.ErrData) && in.footer() >= 0) {
		return 0, err
	}
	n := in.footer()
	if n < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return at + n, nil
}

// tail passes bytes on and keeps the last ones, in which a stream of xz's has ended: its reader reads on.
type tail struct {
	r    io.Reader
	kept []byte
	pos  int64
}

func (t *tail) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.pos += int64(n)
	t.kept = append(t.kept, p[:n]...)
	if most := 32 << 10; len(t.kept) > 2*most {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-most:]...)
	}
	return n, err
}

// footer is where the first footer ends: the .xz file format, 2.1.2. It is -1 where there is none.
func (t *tail) footer() int64 {
	const size = 12
	for i := size; i <= len(t.kept); i++ {
		b := t.kept[i-size : i]
		if b[10] == 'Y' && b[11] == 'Z' && crc32.ChecksumIEEE(b[4:10]) == binary.LittleEndian.Uint32(b) {
			return t.pos - int64(len(t.kept)-i)
		}
	}
	return -1
}

func (t *tree) lz4Legacy(r io.ReaderAt, at, end int64) (int64, error) {
	z := &lz4Reader{s: newStream(r, at, end), buffer: t.lz4Block}
	err := t.unpacked(z)
	t.lz4Block = z.buffer
	return z.s.pos, err
}

// lz4Reader reads lz4's legacy format: blocks of 8 MiB, each behind its packed size.
type lz4Reader struct {
	s              *stream
	packed, buffer []byte
	rest           []byte // of buffer
}

const (
	lz4Block = 8 << 20
	lz4Ratio = 256 // a byte of a length stands for 255 at most
)

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.rest) == 0 {
		if err := z.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

func (z *lz4Reader) next() error {
	head, err := z.s.r.Peek(4)
	if string(head) == lz4Magic {
		return z.s.skip(4)
	}
	if err != nil && err != io.EOF {
		return err
	}
	if len(head) < 4 || binary.LittleEndian.Uint32(head) == 0 {
		return io.EOF
	}
	size := int64(binary.LittleEndian.Uint32(head))
	if size > int64(lz4.CompressBlockBound(lz4Block)) || size > z.s.end-z.s.pos-4 {
		return fmt.Errorf("a block of %d bytes", size)
	}
	if err := z.s.skip(4); err != nil {
		return err
	}
	z.packed = append(z.packed[:0], make([]byte, size)...)
	if err := z.s.read(z.packed); err != nil {
		return err
	}
	if most := int(min(size*lz4Ratio, lz4Block)); len(z.buffer) < most {
		z.buffer = make([]byte, most)
	}
	n, err := lz4.UncompressBlock(z.packed, z.buffer)
	if err != nil {
		return err
	}
	z.rest = z.buffer[:n]
	return nil
}
