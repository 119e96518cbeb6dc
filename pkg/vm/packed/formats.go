package packed

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"
)

const readAhead = 256 << 10

func openGzip(packed *io.SectionReader, _ uint32) (io.ReadCloser, error) {
	return gzip.NewReader(bufio.NewReaderSize(packed, readAhead))
}

// xzHistory is how far back the kernel's build lets xz look: linux, scripts/xz_wrap.sh.
const xzHistory = 128 << 20

func openXz(packed *io.SectionReader, _ uint32) (io.ReadCloser, error) {
	r, err := xz.NewReader(bufio.NewReaderSize(packed, readAhead), xzHistory)
	return io.NopCloser(r), err
}

// openZstd unpacks all at once. The kernel's build lets zstd look back over all of a kernel, so that much
// memory it takes in any case.
func openZstd(packed *io.SectionReader, size uint32) (io.ReadCloser, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	in, err := mapScratch(packed.Size())
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if _, err := io.ReadFull(packed, in.mem); err != nil {
		return nil, err
	}
	out, err := mapScratch(int64(size) + 1) // one more, for what is larger than it says
	if err != nil {
		return nil, err
	}
	all, err := d.DecodeAll(in.mem, out.mem[:0])
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("to be unpacked to 0x%x bytes: %w", size, err)
	}
	out.Reset(all)
	return out, nil
}

// scratch is memory of the host that is needed while a payload is unpacked, and goes back at once. It lies
// on huge pages where there are some: to touch 50 MiB of small pages takes longer than to unpack them.
type scratch struct {
	bytes.Reader
	mem []byte
}

func mapScratch(n int64) (*scratch, error) {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	mem, err := unix.Mmap(-1, 0, int(n), prot, flags)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", n, err)
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // a kernel without them refuses, and nothing changes
	return &scratch{mem: mem}, nil
}

// Close unmaps the memory.
func (s *scratch) Close() error {
	s.Reset(nil)
	mem := s.mem
	s.mem = nil
	return unix.Munmap(mem)
}

// LZ4's legacy frame is a sequence of blocks, each with its packed length before it, which unpack to
// lz4Block bytes each but for the last: LZ4 frame format, "Legacy frame".
const (
	lz4Magic = "\x02\x21\x4c\x18"
	lz4Block = 8 << 20
)

type lz4Reader struct {
	packed  io.Reader
	scratch *scratch
	in, out []byte
	rest    []byte // of out, to be read
}

func openLz4(packed *io.SectionReader, _ uint32) (io.ReadCloser, error) {
	if _, err := packed.Seek(int64(len(lz4Magic)), io.SeekStart); err != nil {
		return nil, err
	}
	s, err := mapScratch(int64(lz4Block + lz4.CompressBlockBound(lz4Block)))
	if err != nil {
		return nil, err
	}
	return &lz4Reader{packed: packed, scratch: s, in: s.mem[lz4Block:], out: s.mem[:lz4Block]}, nil
}

// Close gives the buffers back.
func (z *lz4Reader) Close() error {
	z.in, z.out, z.rest = nil, nil, nil
	return z.scratch.Close()
}

// Read implements io.Reader. A block for which p has room is unpacked straight into p.
func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.rest) == 0 {
		block, err := z.block()
		if err != nil {
			return 0, err
		}
		if len(p) >= lz4Block {
			return lz4.UncompressBlock(block, p[:lz4Block])
		}
		n, err := lz4.UncompressBlock(block, z.out)
		if err != nil {
			return 0, err
		}
		z.rest = z.out[:n]
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

// block returns the next block, packed. io.EOF is the end, unless it is in a block.
func (z *lz4Reader) block() ([]byte, error) {
	length := z.in[:4]
	if _, err := io.ReadFull(z.packed, length); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(length)
	if uint64(n) > uint64(len(z.in)) {
		return nil, fmt.Errorf("a block of 0x%x bytes, 0x%x is the most", n, len(z.in))
	}
	_, err := io.ReadFull(z.packed, z.in[:n])
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return z.in[:n], err
}
