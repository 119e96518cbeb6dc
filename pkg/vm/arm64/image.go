package arm64

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/packed"
)

// kernelBase is where a kernel goes: a multiple of kernelAlign, as near to the start of RAM as can be.
const (
	kernelBase  = RAM + FirmwareRoom
	kernelAlign = 2 << 20
)

// The header of an Image: Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image".
const (
	offTextOffset = 8  // u64, how far from a multiple of kernelAlign the image lies
	offImageSize  = 16 // u64, what it takes of memory, with what is not in the file
	offFlags      = 24 // u64
	offMagic      = 56
	offPE         = 60 // u32, where its PE header is; 0: it has none
	headerSize    = 64

	imageMagic = "ARM\x64"
	bigEndian  = 1 << 0 // in flags

	// headRoom is how far into an Image its headers may reach. Those of distributions take 0x150 bytes.
	headRoom = 4096
)

// The header of an EFI zboot image, which is the Image packed: Linux, drivers/firmware/efi/libstub/zboot-header.S.
const (
	offZbootType     = 4
	offPayloadOffset = 8  // u32, from the start of the file
	offPayloadSize   = 12 // u32, without the field with the unpacked size that follows
	offCompression   = 24 // a string with its NUL
	endCompression   = 56

	zbootMagic = "MZ"
	zbootType  = "zimg"
)

// What other files are told by. For a bzImage that is in Linux's Documentation/arch/x86/boot.rst.
const (
	gzipMagic    = "\x1f\x8b"
	elfMagic     = "\x7fELF"
	offBzImage   = 0x202
	bzImageMagic = "HdrS"
)

var le = binary.LittleEndian

// Image loads an arm64 kernel's Image, as it is, packed by gzip, or in an EFI zboot image.
type Image struct {
	File io.ReaderAt
	// Reservation is how the kernel is kept off the reserved memory.
	Reservation fdt.Reservation
}

// IsImage reports whether a file looks like an Image that can be loaded.
func IsImage(file io.ReaderAt) bool {
	head := make([]byte, headerSize)
	n, _ := file.ReadAt(head, 0)
	head = head[:n]
	return isImage(head) || isZboot(head) || bytes.HasPrefix(head, []byte(gzipMagic))
}

// Board implements vm.Loader.
func (i Image) Board() vm.Board { return Board{Reservation: i.Reservation} }

// Load loads the kernel as vm.Loader has it. It fails with vm.ErrKernel, and packed.ErrPayload beside it for one packed
// in a way that is not known here.
func (i Image) Load(ram *guestmem.Memory) (k vm.Kernel, err error) {
	r, err := open(i.File)
	if err != nil {
		return k, err
	}
	defer r.Close()
	head := make([]byte, headRoom)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF { // those by themselves mean a small file
		return k, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	head = head[:n]
	base, size, err := place(head, ram)
	if err != nil {
		return k, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	if err := fill(ram, base, size, head, r); err != nil {
		return k, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	return vm.Kernel{Entry: base, End: base + guestmem.Addr(size)}, nil
}

// open returns a reader of the Image in a file.
func open(file io.ReaderAt) (io.ReadCloser, error) {
	head := make([]byte, headRoom)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", vm.ErrKernel, err)
	}
	switch head = head[:n]; {
	case isImage(head):
		return io.NopCloser(io.NewSectionReader(file, 0, packed.Largest)), nil
	case bytes.HasPrefix(head, []byte(gzipMagic)):
		return packed.Gzip(file)
	case isZboot(head):
		return openZboot(file, head)
	}
	return nil, fmt.Errorf("%w: %w", vm.ErrKernel, notImage(head))
}

func isImage(head []byte) bool {
	return len(head) >= headerSize && string(head[offMagic:offPE]) == imageMagic
}

func isZboot(head []byte) bool {
	return len(head) >= headerSize && bytes.HasPrefix(head, []byte(zbootMagic)) &&
		bytes.HasPrefix(head[offZbootType:], []byte(zbootType))
}

// notImage says what a file is that begins with head.
func notImage(head []byte) error {
	switch {
	case bytes.HasPrefix(head, []byte(elfMagic)):
		return errors.New("it is an ELF file, this board boots an Image")
	case len(head) > offBzImage && bytes.HasPrefix(head[offBzImage:], []byte(bzImageMagic)):
		return errors.New("it is a bzImage of x86, this board is arm64")
	case len(head) < headerSize:
		return fmt.Errorf("it has %d bytes; it is cut short", len(head))
	}
	return errors.New("no arm64 Image, nor one that is packed by gzip or for EFI (zboot)")
}

// openZboot returns a reader of what a zboot image packs.
func openZboot(file io.ReaderAt, head []byte) (io.ReadCloser, error) {
	start, length := int64(le.Uint32(head[offPayloadOffset:])), int64(le.Uint32(head[offPayloadSize:]))
	how, _, _ := bytes.Cut(head[offCompression:endCompression], []byte{0})
	if string(how) != "gzip" {
		length += packed.SizeField
	}
	r, err := packed.Open(file, start, length, packed.Largest)
	switch {
	case errors.Is(err, packed.ErrPayload):
		return nil, fmt.Errorf("%w: zboot image that is packed by %q: %w", vm.ErrKernel, how, err)
	case err != nil:
		return nil, fmt.Errorf("zboot image that is packed by %q: %w", how, err)
	}
	return r, nil
}

// place says where the Image goes that begins with head, and how much memory it takes there.
func place(head []byte, ram *guestmem.Memory) (base guestmem.Addr, size uint64, err error) {
	if !isImage(head) {
		return 0, 0, fmt.Errorf("what it unpacks to: %w", notImage(head))
	}
	offset, size, flags := le.Uint64(head[offTextOffset:]), le.Uint64(head[offImageSize:]), le.Uint64(head[offFlags:])
	switch {
	case flags&bigEndian != 0:
		return 0, 0, errors.New("it is a big-endian kernel")
	case size < uint64(len(head)):
		return 0, 0, fmt.Errorf("its header says that it takes 0x%x bytes of memory, there are more in the file", size)
	case offset >= kernelAlign:
		return 0, 0, fmt.Errorf("its header says that it lies 0x%x behind a multiple of 0x%x", offset, kernelAlign)
	}
	base = guestmem.Addr(kernelBase + offset)
	if _, err := ram.Window(base, size); err != nil {
		return 0, 0, fmt.Errorf("it takes 0x%x bytes at %v: %w: more than the guest has there: %w", size, base,
			vm.ErrRoom, err)
	}
	return base, size, nil
}

// fill writes an Image to memory, of which head was read from r already. The rest of r is read to its end, where a
// decompressor finds its checksum.
func fill(ram *guestmem.Memory, base guestmem.Addr, size uint64, head []byte, r io.Reader) error {
	whole := io.MultiReader(bytes.NewReader(head), r)
	length, err := fileLength(head)
	switch {
	case err != nil:
		return err
	case length > size:
		return fmt.Errorf("its sections take 0x%x bytes of the file, the kernel 0x%x of memory", length, size)
	case length == 0:
		_, err := io.Copy(ram.Writer(base, size), whole)
		return err
	}
	if err := ram.Fill(whole, base, length); err != nil {
		return fmt.Errorf("0x%x bytes of kernel: %w; the file is cut short", length, err)
	}
	_, err = io.Copy(io.Discard, whole)
	return err
}

// Fields of the PE header: Microsoft's PE format, "COFF File Header" and "Section Table".
const (
	peMagic          = "PE\x00\x00"
	offSections      = 6  // u16, how many
	offOptionalSize  = 20 // u16, of the header between this one and the section table
	peHeaderSize     = 24
	offSectionSize   = 16 // u32, in the file
	offSectionOffset = 20 // u32
	sectionSize      = 40
)

// fileLength returns how long an Image is by its PE header, in which the whole kernel is in sections: that tells one
// that is cut short. It is 0 for an Image that has none, for it is not for EFI; of such a one nothing can tell.
func fileLength(head []byte) (length uint64, err error) {
	at := uint64(le.Uint32(head[offPE:]))
	if at == 0 {
		return 0, nil
	}
	if at+peHeaderSize > uint64(len(head)) || string(head[at:at+4]) != peMagic {
		return 0, fmt.Errorf("no PE header at 0x%x, where its header says it is", at)
	}
	count := uint64(le.Uint16(head[at+offSections:]))
	table := at + peHeaderSize + uint64(le.Uint16(head[at+offOptionalSize:]))
	if table+count*sectionSize > uint64(len(head)) {
		return 0, fmt.Errorf("%d PE sections at 0x%x; they have to be in the first 0x%x bytes", count, table, len(head))
	}
	for s := head[table : table+count*sectionSize]; len(s) > 0; s = s[sectionSize:] {
		length = max(length, uint64(le.Uint32(s[offSectionOffset:]))+uint64(le.Uint32(s[offSectionSize:])))
	}
	return length, nil
}
