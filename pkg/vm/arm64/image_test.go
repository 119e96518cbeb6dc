package arm64_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/packed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "pack testdata/image.xz again, by the xz program")

var le = binary.LittleEndian

const (
	kernelAt   = arm64.RAM + 2<<20
	imageSize  = 0x1800 // in memory
	fileSize   = 0x1510 // of an Image
	textOffset = 0x80000
)

// image is an Image with a PE header of two sections: Linux, arch/arm64/kernel/head.S and efi-header.S.
func image() []byte {
	b := make([]byte, fileSize)
	for i := range b {
		b[i] = byte(i * i >> 5)
	}
	clear(b[:0x150])
	copy(b, "MZ@\xfa")
	le.PutUint64(b[16:], imageSize)
	le.PutUint64(b[24:], 0xa)
	copy(b[56:], "ARM\x64\x40")
	copy(b[0x40:], "PE\x00\x00\x64\xaa\x02")
	b[0x40+20] = 0xa0
	for i, s := range [][2]uint32{{0x400, 0x800}, {0xc00, fileSize - 0xc00}} { // offset, size
		section := b[0x40+24+0xa0+40*i:]
		le.PutUint32(section[16:], s[1])
		le.PutUint32(section[20:], s[0])
	}
	return b
}

// changed is an Image with other bytes at a place.
func changed(at int, to ...byte) []byte {
	b := image()
	copy(b[at:], to)
	return b
}

func u32(v uint32) []byte { return le.AppendUint32(nil, v) }
func u64(v uint64) []byte { return le.AppendUint64(nil, v) }

// zboot is an EFI zboot image: its header, something, what is packed with its size behind it, something.
func zboot(how string, payload []byte, size int) []byte {
	b := make([]byte, 0x200)
	copy(b, "MZ\x00\x00zimg")
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(len(payload)))
	copy(b[24:], how)
	b = append(b, payload...)
	if how != "gzip" {
		b = append(b, u32(uint32(size))...)
	}
	return append(b, "behind"...)
}

// packers pack as the kernel's build does, by the names that it has for that.
var packers = map[string]func(t testing.TB, content []byte) []byte{
	"gzip": func(t testing.TB, content []byte) []byte {
		var b bytes.Buffer
		return written(t, content, &b, gzip.NewWriter(&b), nil)
	},
	"lz4": func(t testing.TB, content []byte) []byte {
		var b bytes.Buffer
		w := lz4.NewWriter(&b)
		return written(t, content, &b, w, w.Apply(lz4.LegacyOption(true)))
	},
	"zstd22": func(t testing.TB, content []byte) []byte {
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		return written(t, content, &b, w, err)
	},
	"xzkern": packedXz,
}

// written returns what w, opened with err, leaves of content in b.
func written(t testing.TB, content []byte, b *bytes.Buffer, w io.WriteCloser, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(content)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// packedXz returns a file of testdata, which is image() whatever content is: no package here writes xz.
func packedXz(t testing.TB, _ []byte) []byte {
	t.Helper()
	name := filepath.Join("testdata", "image.xz")
	if *update {
		cmd := exec.Command("xz", "--check=crc32", "--lzma2=dict=64KiB", "--stdout")
		cmd.Stdin = bytes.NewReader(image())
		packed, err := cmd.Output()
		if err := errors.Join(err, os.WriteFile(name, packed, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	packed, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// forms are all files that hold image().
func forms(t testing.TB) map[string][]byte {
	files := map[string][]byte{
		"as it is": image(),
		"signed":   append(image(), make([]byte, 0x1000)...),
		"gzip":     packers["gzip"](t, image()),
	}
	for how, pack := range packers {
		files["zboot, "+how] = zboot(how, pack(t, image()), fileSize)
	}
	return files
}

// load loads a file into memory of some size at the place for kernels.
func load(t testing.TB, file []byte, size int) (vm.Kernel, []byte, error) {
	t.Helper()
	mem := make([]byte, size)
	ram, err := guestmem.New(guestmem.Region{Base: kernelAt, Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	k, err := arm64.Image{File: bytes.NewReader(file)}.Load(ram)
	return k, mem, err
}

func TestImage(t *testing.T) {
	want := append(image(), make([]byte, imageSize-fileSize)...)
	for name, file := range forms(t) {
		k, mem, err := load(t, file, imageSize)
		if err != nil || k.Entry != kernelAt || k.End != kernelAt+imageSize || k.Header != nil {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
		if !bytes.Equal(mem, want) {
			t.Errorf("%s: other memory", name)
		}
	}
}

// An Image may want to lie some way behind a multiple of 2 MiB, and may have no PE header.
func TestImageWithoutPE(t *testing.T) {
	file := changed(8, u64(textOffset)...)
	copy(file[60:], u32(0))
	k, mem, err := load(t, file, textOffset+imageSize)
	if err != nil || k.Entry != kernelAt+textOffset || k.End != kernelAt+textOffset+imageSize {
		t.Errorf("%+v, %v", k, err)
	}
	if !bytes.Equal(mem[textOffset:textOffset+fileSize], file) {
		t.Error("other memory")
	}
}

func TestImageRefuses(t *testing.T) {
	small := packers["lz4"](t, image())
	noPE := changed(60, u32(0)...)
	for name, tc := range map[string]struct {
		file []byte
		says string
	}{
		"nothing":                 {nil, "0 bytes; it is cut short"},
		"a header cut short":      {image()[:63], "63 bytes; it is cut short"},
		"an ELF file":             {append([]byte("\x7fELF"), make([]byte, 100)...), "an ELF file"},
		"a bzImage":               {append(append([]byte("MZ"), make([]byte, 0x200)...), "HdrS"...), "a bzImage of x86"},
		"a program of EFI":        {append([]byte("MZ"), make([]byte, 0x400)...), "no arm64 Image"},
		"big-endian":              {changed(24, 0xb), "big-endian"},
		"no size":                 {changed(16, u64(0)...), "0x0 bytes of memory"},
		"size of all":             {changed(16, u64(1<<64-1)...), "0xffffffffffffffff bytes at 0x40200000"},
		"more than there is":      {changed(16, u64(imageSize+1)...), vm.ErrRoom.Error()},
		"text_offset":             {changed(8, u64(2<<20)...), "0x200000 behind"},
		"text_offset and no room": {changed(8, u64(0x1000)...), vm.ErrRoom.Error()},
		"PE header far away":      {changed(60, u32(0xffffffff)...), "no PE header at 0xffffffff"},
		"no PE header there":      {changed(0x40, 'p'), "no PE header at 0x40"},
		"many sections":           {changed(0x46, 0xff, 0xff), "65535 PE sections"},
		"large section":           {changed(0xf8+20, u32(0xffffffff)...), "of the file"},
		"larger file":             {append(noPE, make([]byte, imageSize)...), "the room ends"},
		"gzip of what is none":    {packers["gzip"](t, []byte("neither")), "what it unpacks to: it has 7 bytes"},
		"gzip of gzip":            {packers["gzip"](t, packers["gzip"](t, image())), "what it unpacks to: no arm64 Image"},
		"gzip's header":           {append([]byte("\x1f\x8b\x07"), make([]byte, 100)...), "gzip"},
		"zboot, LZMA":             {zboot("lzma", []byte("\x5d\x00\x00\x80\x00......"), fileSize), `packed by "lzma"`},
		"zboot, no end": {zboot(strings.Repeat("a", 40), []byte("\x5d\x00\x00\x80\x00......"), fileSize),
			`packed by "aaa`},
		"zboot, less":     {zboot("lz4", small, fileSize-1), "more than the 0x150f bytes"},
		"zboot, more":     {zboot("lz4", small, fileSize+1), "unexpected EOF"},
		"zboot, too much": {zboot("lz4", small, packed.Largest+1), "the limit is 0x10000000"},
		"zboot, elsewhere": {append(zboot("lz4", small, fileSize)[:8], bytes.Repeat([]byte{0xff}, 0x100)...),
			"cut short"},
	} {
		k, _, err := load(t, tc.file, imageSize)
		if !errors.Is(err, vm.ErrKernel) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		if k.End != 0 || err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
	if _, _, err := load(t, zboot("lzo", []byte("\x89LZO......"), fileSize), imageSize); !errors.Is(err,
		packed.ErrPayload) {
		t.Error(err)
	}
	if _, _, err := load(t, image(), imageSize-1); !errors.Is(err, vm.ErrRoom) {
		t.Error(err)
	}
}

// A file that is cut short is refused, wherever it is cut.
func TestImageCutShort(t *testing.T) {
	for name, file := range forms(t) {
		whole := len(file)
		switch {
		case name == "signed":
			whole = fileSize
		case strings.HasPrefix(name, "zboot"):
			whole -= len("behind")
		}
		for n := 0; n < whole; n += 1 + n/64 {
			if _, _, err := load(t, file[:n], imageSize); !errors.Is(err, vm.ErrKernel) {
				t.Errorf("%s: %d bytes of %d: %v", name, n, whole, err)
			}
		}
		if _, _, err := load(t, file[:whole-1], imageSize); !errors.Is(err, vm.ErrKernel) {
			t.Errorf("%s: all but a byte of %d: %v", name, whole, err)
		}
	}
}

func TestImageBrokenFile(t *testing.T) {
	ram, err := guestmem.New(guestmem.Region{Base: kernelAt, Mem: make([]byte, imageSize)})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 0x200, 0x1000, 0x1500} {
		file := brokenFile{bytes.NewReader(image()), int64(n)}
		_, err := arm64.Image{File: file}.Load(ram)
		if !errors.Is(err, vm.ErrKernel) || !errors.Is(err, iotest.ErrTimeout) {
			t.Errorf("broken at 0x%x: %v", n, err)
		}
	}
}

// brokenFile is a file that can't be read behind a place.
type brokenFile struct {
	*bytes.Reader
	end int64
}

func (f brokenFile) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.end {
		return 0, iotest.ErrTimeout
	}
	return f.Reader.ReadAt(p, off)
}

// What unpacks to more than a kernel can have takes no more memory, and comes to an end.
func TestImageBomb(t *testing.T) {
	if testing.Short() {
		t.Skip("unpacks 256 MiB")
	}
	bomb := packers["gzip"](t, append(image(), make([]byte, packed.Largest)...))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err := load(t, bomb, imageSize)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, vm.ErrKernel) || !strings.Contains(err.Error(), fmt.Sprintf("more than 0x%x bytes",
		packed.Largest)) {
		t.Error(err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("it took %d bytes", n)
	}
}

// FuzzImage is a file of any bytes: it is loaded into the memory that there is, or refused.
func FuzzImage(f *testing.F) {
	for _, file := range forms(f) {
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		k, _, err := load(t, file, imageSize)
		switch {
		case err != nil && !errors.Is(err, vm.ErrKernel):
			t.Fatal(err)
		case err == nil && (k.Entry < kernelAt || k.End <= k.Entry || k.End > kernelAt+imageSize):
			t.Fatalf("a kernel from %v to %v", k.Entry, k.End)
		}
	})
}
