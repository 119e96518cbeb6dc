package x86

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/packed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "pack testdata/*.xz again, by the xz program")

// A test's ELF file: text of some size, data out of order among the headers, and zeroes behind both.
const (
	textOff, textAddr = 0x1000, 1<<20 + 0x1000
	dataSize          = 0x800
	dataMem           = dataSize + 0x5000
	gap               = 0x234 // between text and data, in the file alone
	trailer           = 0x345 // as section headers and relocations in a vmlinux
	smallText         = 0x800
	largeText         = 1 << 20
	room              = 32 << 20 // what images ask for
	lz4Block          = 8 << 20  // of LZ4's legacy frames
)

func dataOff(text int) int  { return textOff + text + gap }
func dataAddr(text int) int { return (textAddr + text + 0xfff) &^ 0xfff }
func ramEnd(text int) int   { return dataAddr(text) + dataMem + 0x1000 }

// code is x86 code that calls one function from everywhere: the x86 filter of xz changes every call.
func code(size int) []byte {
	b := make([]byte, size)
	for i := 0; i+16 <= size; i += 16 {
		copy(b[i:], "\xe8....\x48\x89\xc3\x48\x8d\x3d")
		le.PutUint32(b[i+1:], uint32(size/2-i-5))
		le.PutUint32(b[i+11:], uint32(i>>14)*0x9e3779b1)
	}
	return b
}

func kernelELF(text int) []byte {
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, le, v); err != nil {
			panic(err)
		}
	}
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: textAddr + 0x10,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 4,
		Shoff: uint64(dataOff(text) + dataSize + 0x100), Shentsize: 64, Shnum: 3, Shstrndx: 1,
	}
	copy(header.Ident[:], "\x7fELF\x02\x01\x01")
	put(header)
	load := uint32(elf.PT_LOAD)
	put(elf.Prog64{
		Type: load, Off: uint64(dataOff(text)), Paddr: uint64(dataAddr(text)), Filesz: dataSize, Memsz: dataMem,
	})
	put(elf.Prog64{Type: uint32(elf.PT_NOTE), Off: textOff, Paddr: 0x1000, Filesz: 0x40, Memsz: 0x40})
	put(elf.Prog64{Type: load, Off: 0x10, Paddr: uint64(dataAddr(text) + dataMem), Memsz: 0x1000})
	put(elf.Prog64{Type: load, Off: textOff, Paddr: textAddr, Filesz: uint64(text), Memsz: uint64(text)})
	b.Write(make([]byte, textOff-b.Len()))
	b.Write(code(text))
	b.Write(bytes.Repeat([]byte("gap "), gap/4))
	b.Write(bytes.Repeat([]byte("data"), dataSize/4))
	b.Write(bytes.Repeat([]byte{0xff}, trailer))
	return b.Bytes()
}

// wantRAM is what kernelELF(text) is in memory.
func wantRAM(text int) []byte {
	ram := make([]byte, ramEnd(text))
	copy(ram[textAddr:], code(text))
	copy(ram[dataAddr(text):], bytes.Repeat([]byte("data"), dataSize/4))
	return ram
}

// packers pack kernelELF(text) as the kernel's build does.
var packers = map[string]func(t testing.TB, text int) []byte{
	"gzip": func(t testing.TB, text int) []byte { return packGzip(t, kernelELF(text)) },
	"lz4":  func(t testing.TB, text int) []byte { return packLz4(t, kernelELF(text)) },
	"zstd": func(t testing.TB, text int) []byte { return packZstd(t, kernelELF(text)) },
	"xz":   packedXz,
}

func packGzip(t testing.TB, content []byte) []byte {
	var b bytes.Buffer
	return written(t, content, &b, gzip.NewWriter(&b), nil)
}

func packLz4(t testing.TB, content []byte) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	return written(t, content, &b, w, w.Apply(lz4.LegacyOption(true)))
}

func packZstd(t testing.TB, content []byte) []byte {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	return written(t, content, &b, w, err)
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

// packedXz returns a file of testdata: no package that writes xz has the x86 filter, without which no
// x86 kernel is packed (linux, scripts/xz_wrap.sh).
func packedXz(t testing.TB, text int) []byte {
	t.Helper()
	name := map[int]string{smallText: "testdata/small.xz", largeText: "testdata/large.xz"}[text]
	if *update {
		cmd := exec.Command("xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "--stdout")
		cmd.Stdin = bytes.NewReader(kernelELF(text))
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

// image is a bzImage that carries packed and says that it unpacks to size bytes. Fields by their
// offsets in the Linux boot protocol.
func image(packed []byte, size int) []byte {
	const sectors, before, behind = 4, 0x321, 0x100
	head := make([]byte, (sectors+1)*512)
	head[0x1f1] = sectors
	if bytes.HasPrefix(packed, []byte("\x1f\x8b")) { // gzip ends with its size anyway: RFC 1952, 2.3.1
		packed = packed[:len(packed)-4]
	}
	packed = le.AppendUint32(bytes.Clone(packed), uint32(size))
	le.PutUint32(head[0x248:], before)
	le.PutUint32(head[0x24c:], uint32(len(packed)))
	le.PutUint32(head[0x260:], room)
	return join(head, bytes.Repeat([]byte{0x90}, before), packed, bytes.Repeat([]byte{0xcc}, behind))
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// newRAM returns memory that kernelELF(text) just fits into. Text and data lie in two regions each.
func newRAM(t testing.TB, text int) (*guestmem.Memory, []byte) {
	t.Helper()
	mem := make([]byte, ramEnd(text))
	cut1, cut2 := textAddr+text/3, dataAddr(text)+dataSize/3
	ram, err := guestmem.New(guestmem.Region{Mem: mem[:cut1]},
		guestmem.Region{Base: guestmem.Addr(cut1), Mem: mem[cut1:cut2]},
		guestmem.Region{Base: guestmem.Addr(cut2), Mem: mem[cut2:]})
	if err != nil {
		t.Fatal(err)
	}
	return ram, mem
}

// loadPayload loads what an image carries.
func loadPayload(image []byte, ram *guestmem.Memory) (entry, end guestmem.Addr, err error) {
	r, err := payload(bytes.NewReader(image), image[:min(len(image), setupEnd)])
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	return loadELFStream(r, ram)
}

func TestPayload(t *testing.T) {
	for name, pack := range packers {
		for _, text := range []int{smallText, largeText} {
			ram, mem := newRAM(t, text)
			b := image(pack(t, text), len(kernelELF(text)))
			if text == smallText {
				b[0x1f1] = 0 // as good as 4: Linux boot protocol, "setup_sects"
			}
			entry, end, err := loadPayload(b, ram)
			same := bytes.Equal(mem, wantRAM(text))
			if err != nil || entry != textAddr+0x10 || end != guestmem.Addr(ramEnd(text)) || !same {
				t.Errorf("%s, %d bytes of text: entry %v, end %v, the same memory: %t, %v", name, text, entry, end, same, err)
			}
		}
	}
}

// zstdFrame is one block that is not compressed, in a frame with a window of 2^log bytes:
// RFC 8878, 3.1.1.
func zstdFrame(content []byte, log int) []byte {
	return join([]byte("\x28\xb5\x2f\xfd\x00"), []byte{byte(log-10) << 3},
		le.AppendUint32(nil, uint32(len(content))<<3|1)[:3], content)
}

// xzDictionary changes what packed says of its LZMA2 dictionary: .xz file format, 3.1 and 5.3.1.
func xzDictionary(packed []byte, code byte) []byte {
	packed = bytes.Clone(packed)
	header := packed[12:][:4*(int(packed[12])+1)]
	header[bytes.Index(header, []byte("\x21\x01"))+2] = code
	le.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
	return packed
}

// The kernel's build packs with windows of up to 128 MiB. For what a file says of its window alone the
// host takes no more.
func TestPayloadWindow(t *testing.T) {
	small := kernelELF(smallText)
	for name, tc := range map[string]struct {
		packed []byte
		fits   bool
	}{
		"zstd, 128 MiB": {zstdFrame(small, 27), true},
		"zstd, 256 MiB": {zstdFrame(small, 28), true}, // it takes what it unpacks to
		"zstd, most":    {zstdFrame(small, 41), false},
		"xz, 128 MiB":   {xzDictionary(packedXz(t, smallText), 30), true},
		"xz, 192 MiB":   {xzDictionary(packedXz(t, smallText), 31), false},
		"xz, 4 GiB":     {xzDictionary(packedXz(t, smallText), 40), false},
	} {
		ram, _ := newRAM(t, smallText)
		_, _, err := loadPayload(image(tc.packed, len(small)), ram)
		if (err == nil) != tc.fits || err != nil && !errors.Is(err, vm.ErrKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPayloadRefuses(t *testing.T) {
	small := len(kernelELF(smallText))
	good := image(packers["lz4"](t, smallText), small)
	change := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		le.PutUint32(b[at:], v)
		return b
	}
	tooLarge := image(packers["lz4"](t, smallText), packed.Largest+1)
	le.PutUint32(tooLarge[0x260:], 0xffffffff)
	packedMore := image(packers["lz4"](t, smallText), 0x10)
	le.PutUint32(packedMore[0x260:], 0x10)
	for name, tc := range map[string]struct {
		image []byte
		want  error
		says  string
	}{
		"header cut":      {good[:0x250], vm.ErrKernel, "cut short"},
		"bzip2":           {image([]byte("BZh91AY&SY"), small), ErrPayload, "gzip, xz, lz4, zstd"},
		"lz4, not legacy": {image([]byte("\x04\x22\x4d\x18......"), small), ErrPayload, "04 22 4d 18"},
		"none":            {change(0x24c, 0), ErrPayload, "0 bytes"},
		"a size alone":    {change(0x24c, 4), ErrPayload, "4 bytes"},
		"no room":         {change(0x260, uint32(small)-1), ErrPayload, fmt.Sprintf("the limit is 0x%x", small-1)},
		"packed to more":  {packedMore, ErrPayload, "the limit is 0x10"},
		"too large":       {tooLarge, ErrPayload, "the limit is 0x10000000"},
		"elsewhere":       {change(0x248, 0xffffffff), vm.ErrKernel, "EOF"},
		"longer":          {change(0x24c, 0xffffffff), vm.ErrKernel, "EOF"},
		"image cut":       {good[:len(good)-0x102], vm.ErrKernel, "EOF"},
		"gzip header":     {image([]byte("\x1f\x8b\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00"), small), vm.ErrKernel, "gzip"},
		"xz header":       {image([]byte("\xfd7zXZ\x00\x00\x01...."), small), vm.ErrKernel, "xz"},
	} {
		r, err := payload(bytes.NewReader(tc.image), tc.image[:min(len(tc.image), setupEnd)])
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		if r != nil {
			t.Errorf("%s: a reader beside an error", name)
		}
	}
	broken := iotest.ErrReader(iotest.ErrTimeout)
	_, err := payload(readerAt{broken}, good[:setupEnd])
	if !errors.Is(err, vm.ErrKernel) || !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("broken file: %v", err)
	}
}

type readerAt struct{ io.Reader }

func (r readerAt) ReadAt(p []byte, _ int64) (int, error) { return r.Read(p) }

// A payload that is cut, or not of the size that the image says, is refused, wherever that shows.
func TestPayloadBroken(t *testing.T) {
	for name, pack := range packers {
		packed, size := pack(t, smallText), len(kernelELF(smallText))
		for what, image := range map[string][]byte{
			"cut at once":      image(packed[:16], size),
			"cut in half":      image(packed[:len(packed)/2], size),
			"cut near its end": image(packed[:len(packed)-1], size),
			"size too small":   image(packed, size-1),
			"size too large":   image(packed, size+1),
			"size of 0":        image(packed, 0),
		} {
			ram, _ := newRAM(t, smallText)
			if _, _, err := loadPayload(image, ram); !errors.Is(err, vm.ErrKernel) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// What unpacks to more than the image says takes no more memory for it.
func TestPayloadBomb(t *testing.T) {
	bomb := image(packZstd(t, make([]byte, 64<<20)), 1<<20)
	ram, _ := newRAM(t, smallText)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, _, err := loadPayload(bomb, ram); !errors.Is(err, vm.ErrKernel) {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
		t.Errorf("it took %d bytes", n)
	}
}

// LZ4's blocks are unpacked straight into guest memory where a segment has room for a whole one.
func TestPayloadBlocks(t *testing.T) {
	const text = 2*lz4Block + 5<<20
	ram, mem := newRAM(t, text)
	content := kernelELF(text)
	_, _, err := loadPayload(image(packLz4(t, content), len(content)), ram)
	if same := bytes.Equal(mem, wantRAM(text)); err != nil || !same {
		t.Errorf("the same memory: %t, %v", same, err)
	}
}

// A payload that is cut between two blocks looks whole.
func TestPayloadBlocksBroken(t *testing.T) {
	const text = lz4Block + 1<<20
	content := kernelELF(text)
	packed := packLz4(t, content)
	second := 8 + le.Uint32(packed[4:]) // magic, length, block
	ram, _ := newRAM(t, text)
	atSecond := fmt.Sprintf("at byte 0x800000 of the 0x%x that it unpacks to: unexpected EOF", len(content))
	tooMuch := make([]byte, 1<<20)
	n, err := lz4.CompressBlock(make([]byte, lz4Block+1), tooMuch, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		packed []byte
		says   string
	}{
		"cut between two": {packed[:second], atSecond},
		"cut in a length": {packed[:second+2], atSecond},
		"cut behind it":   {packed[:second+4], atSecond},
		"cut in a block":  {packed[:20], "lz4 payload, at byte 0x0 of"},
		"longest":         {join(packed[:4], le.AppendUint32(nil, 0xffffffff), packed), "a block of 0xffffffff bytes"},
		"unpacks to more": {join(packed[:4], le.AppendUint32(nil, uint32(n)), tooMuch[:n]), "lz4"},
		"empty ones":      {join(packed[:4], make([]byte, 400)), "lz4 payload, at byte 0x0 of"},
	} {
		_, _, err = loadPayload(image(tc.packed, len(content)), ram)
		if !errors.Is(err, vm.ErrKernel) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A payload in which a bit is not as it was is refused, or unpacks to the same all the same. LZ4's
// legacy format has no checksum.
func TestPayloadChanged(t *testing.T) {
	const tries = 30
	want := wantRAM(smallText)
	for name, pack := range packers {
		packed, refused := pack(t, smallText), 0
		for i := range tries {
			at := i * len(packed) / tries
			changed := bytes.Clone(packed)
			changed[at] ^= 1 << (at % 8)
			ram, mem := newRAM(t, smallText)
			_, _, err := loadPayload(image(changed, len(kernelELF(smallText))), ram)
			switch {
			case err == nil && name != "lz4" && !bytes.Equal(mem, want):
				t.Errorf("%s, byte %d: other memory, and no error", name, at)
			case err != nil && !errors.Is(err, vm.ErrKernel) && !errors.Is(err, ErrPayload):
				t.Errorf("%s, byte %d: %v", name, at, err)
			case err != nil:
				refused++
			}
		}
		if name != "lz4" && refused < tries/2 {
			t.Errorf("%s: %d of %d refused", name, refused, tries)
		}
	}
}

// Whoever gives up half-way leaves nothing behind: TestMain looks.
func TestPayloadClosedEarly(t *testing.T) {
	for name, pack := range packers {
		b := image(pack(t, largeText), len(kernelELF(largeText)))
		for _, n := range []int{0, 1, largeText / 2} {
			r, err := payload(bytes.NewReader(b), b)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, n)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := r.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// FuzzPayload: whatever an image carries, and says of it, is loaded or refused. Windows are small, for
// making large ones takes longer than all else.
func FuzzPayload(f *testing.F) {
	small := kernelELF(smallText)
	for _, packed := range [][]byte{
		packGzip(f, small), packLz4(f, small), packZstd(f, small), zstdFrame(small, 17),
		xzDictionary(packedXz(f, smallText), 0),
	} {
		b := image(packed, len(small))
		f.Add(packed, uint32(len(small)), b[offSetupSects], le.Uint32(b[offPayloadOffset:]), le.Uint32(b[offPayloadLength:]))
	}
	ram, _ := newRAM(f, smallText) // used again: to clear it takes longer than to load a kernel
	f.Fuzz(func(t *testing.T, packed []byte, size uint32, sectors byte, offset, length uint32) {
		if len(packed) < 4 {
			t.Skip("nothing to unpack")
		}
		b := image(packed, int(size))
		b[offSetupSects] = sectors
		le.PutUint32(b[offPayloadOffset:], offset)
		le.PutUint32(b[offPayloadLength:], length)
		if _, _, err := loadPayload(b, ram); err != nil && !errors.Is(err, vm.ErrKernel) && !errors.Is(err, ErrPayload) {
			t.Fatal(err)
		}
	})
}
