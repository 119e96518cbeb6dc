package introspect

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ktstr/ktstr-vmm/internal/elffile"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

// Why nothing can be read, beside ErrTypes and ErrUnmapped; for errors.Is.
var (
	// ErrSymbols means that a symbol is not known that is needed.
	ErrSymbols = errors.New("the kernel's symbols")
	// ErrNotThere means that the kernel is not in the guest's memory: not yet, or it is another one.
	ErrNotThere = errors.New("the kernel was not found in the guest's memory")
	// ErrNotUp means that the kernel has not set up its run queues yet.
	ErrNotUp = errors.New("the kernel has not set up its run queues yet")
)

// The symbols that are needed of any kernel, and of an architecture's.
const (
	symText      = "_text"               // where the kernel's image begins
	symBanner    = "linux_banner"        // "Linux version …"
	symRunqueues = "runqueues"           // per CPU, struct rq
	symOffsets   = "__per_cpu_offset"    // what to add to a per-CPU variable's address, by CPU
	symX86Root   = "init_top_pgt"        // the page tables that kernel threads run on
	symX86Phys   = "phys_base"           // how far from its place the kernel lies in memory, less than it is mapped
	symArm64Root = "swapper_pg_dir"      // as init_top_pgt
	symArm64Virt = "kimage_voffset"      // from physical addresses to the image's
	x86Map       = 0xffff_ffff_8000_0000 // __START_KERNEL_map
	bannerStart  = "Linux version "
	maxBanner    = 512
)

// arch is what is different for an architecture.
type arch struct {
	name    string
	symbols []string
	// Where a kernel lies unless it moves itself, and the end of where that is looked for, at each step.
	first, last, step guestmem.Addr
}

var arches = []arch{
	{"x86_64", []string{symX86Root, symX86Phys}, 16 << 20, 4 << 30, 2 << 20},
	{"arm64", []string{symArm64Root, symArm64Virt}, 1<<30 + 2<<20, 5 << 30, 2 << 20},
}

func archOf(name string) (arch, error) {
	i := slices.IndexFunc(arches, func(a arch) bool { return a.name == name })
	if i < 0 {
		return arch{}, fmt.Errorf("%w: no kernel for %q is known", ErrSymbols, name)
	}
	return arches[i], nil
}

func (a arch) wanted() []string {
	return append([]string{symText, symBanner, symRunqueues, symOffsets}, a.symbols...)
}

// Kernel is what is known of a kernel: where its variables are as it was linked, and its types. It may be used
// concurrently.
type Kernel struct {
	arch    arch
	symbols map[string]uint64
	code    Symbols
	layout  layout // zero: its types are not known
	banner  string // what the kernel's memory has to say, by its file; "": there was none
}

// check fails with ErrSymbols unless all the symbols are known.
func (k *Kernel) check() error {
	var missing []string
	for _, s := range k.arch.wanted() {
		if _, ok := k.symbols[s]; !ok {
			missing = append(missing, s)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w do not name %s (CONFIG_KALLSYMS_ALL, or a vmlinux with its symbols, has them)",
			ErrSymbols, strings.Join(missing, ", "))
	}
	return nil
}

// ReadVmlinux reads the symbols and types of a kernel from its vmlinux, an ELF file. It fails with ErrSymbols or
// ErrTypes for one that has been stripped of them; with ErrTypes it returns the kernel all the same, for its symbols.
func ReadVmlinux(file io.ReaderAt) (*Kernel, error) {
	f, err := elffile.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%w: no ELF file: %w", ErrSymbols, err)
	}
	k := &Kernel{symbols: map[string]uint64{}}
	machines := map[elf.Machine]string{elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "arm64"}
	if k.arch, err = archOf(machines[f.Machine]); err != nil {
		return nil, err
	}
	if err := k.readSymbols(f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSymbols, err)
	}
	if err := k.check(); err != nil {
		return nil, err
	}
	if k.banner, err = readBanner(f, k.symbols[symBanner]); err != nil {
		return nil, err
	}
	types := f.Section(".BTF")
	if types == nil || types.Size > maxBTF {
		return k, fmt.Errorf("%w are not in its vmlinux", ErrTypes)
	}
	data, err := elffile.Data(types, maxBTF)
	if err != nil {
		return k, fmt.Errorf("%w: %w", ErrTypes, err)
	}
	k.layout, err = readLayout(data, newEffort(context.Background()))
	return k, err
}

// readBanner returns the string at an address of a kernel's file.
func readBanner(f *elf.File, at uint64) (string, error) {
	for _, s := range f.Sections {
		if s.Type != elf.SHT_PROGBITS || at < s.Addr || at-s.Addr >= s.Size {
			continue
		}
		b := make([]byte, maxBanner)
		n, err := s.ReadAt(b, int64(at-s.Addr))
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("%w: %s: %w", ErrSymbols, symBanner, err)
		}
		return cString(b[:n]), nil
	}
	return "", fmt.Errorf("%w: %s is in no section", ErrSymbols, symBanner)
}

// cString returns what is before the first NUL.
func cString(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// How much of memory is taken for a kernel's image: those of distributions have 60 MiB, and all that is looked for is
// in the first half.
const (
	maxImage  = 128 << 20
	imageStep = 16 << 20
)

// ReadMemory reads the symbols and types of a kernel from a guest's memory, where it has them for itself, with
// CONFIG_KALLSYMS_ALL and CONFIG_DEBUG_INFO_BTF. The guest may have changed them: what comes of it is bounded, and is
// as true as the guest's memory is. It fails with ErrSymbols or ErrTypes where there are none, also if the kernel has
// yet to unpack itself or ctx ends. arch is as package guest has it.
func ReadMemory(ctx context.Context, mem *guestmem.Memory, arch string) (*Kernel, error) {
	a, err := archOf(arch)
	if err != nil {
		return nil, err
	}
	k, e := &Kernel{arch: a}, newEffort(ctx)
	image := make([]byte, 0, maxImage)
	for len(image) < maxImage && ctx.Err() == nil {
		from := a.first + guestmem.Addr(len(image))
		n := readable(mem, from, min(imageStep, maxImage-len(image)))
		if n == 0 {
			break
		}
		image = image[:len(image)+n]
		if err := mem.Read(image[len(image)-n:], from); err != nil {
			return nil, err
		}
		if k.symbols == nil {
			k.symbols, k.code, _ = lookup(image, a.wanted(), e)
		}
		if k.symbols == nil {
			continue
		}
		if k.layout, err = findLayout(image, e); err == nil {
			return k, k.check()
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: the search in memory: %w", ErrSymbols, err)
	}
	if k.symbols == nil {
		return nil, fmt.Errorf("%w: %w is at %v or in the 0x%x bytes behind it", ErrSymbols, errKallsyms, a.first, len(image))
	}
	if err := k.check(); err != nil {
		return nil, err
	}
	return nil, err
}

// readable returns how many of n bytes at an address are RAM, to a page.
func readable(mem *guestmem.Memory, at guestmem.Addr, n int) int {
	for ; n >= smallest; n /= 2 {
		if _, err := mem.Window(at, uint64(n)); err == nil {
			return n
		}
	}
	return 0
}

// View is a kernel in the memory of its guest. It must not be used concurrently.
type View struct {
	layout
	tables
	code      Symbols
	runqueues uint64 // the address of the per-CPU variable
	offsets   uint64 // the address of the per-CPU offsets
}

// Open finds a kernel in a guest's memory. It fails with ErrNotThere, or ErrUnmapped if its page tables are not set up
// yet.
func (k *Kernel) Open(mem *guestmem.Memory) (*View, error) {
	text, err := k.findImage(mem)
	if err != nil {
		return nil, err
	}
	place := func(symbol string) guestmem.Addr { return text + guestmem.Addr(k.symbols[symbol]-k.symbols[symText]) }
	base, err := k.mappedAt(mem, text, place)
	if err != nil {
		return nil, err
	}
	slide := base - k.symbols[symText]
	address := func(symbol string) uint64 {
		if a := k.symbols[symbol]; a < k.symbols[symText] { // x86_64's per-CPU variables are counted from 0
			return a
		}
		return k.symbols[symbol] + slide
	}
	v := &View{layout: k.layout, code: k.code, runqueues: address(symRunqueues), offsets: address(symOffsets)}
	v.code.slide = slide
	for _, f := range formats(k.arch.name, k.pageShift(mem, text)) {
		v.tables = tables{format: f, mem: mem, root: place(k.arch.symbols[0])}
		if at, err := v.translate(address(symBanner)); err == nil && at == place(symBanner) {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%w: none at %v leads to the kernel's own image", ErrUnmapped, place(k.arch.symbols[0]))
}

// findImage returns where the kernel's image begins, by its banner: a kernel may have moved itself.
func (k *Kernel) findImage(mem *guestmem.Memory) (guestmem.Addr, error) {
	want := []byte(k.banner)
	if len(want) == 0 {
		want = []byte(bannerStart)
	}
	from := guestmem.Addr(k.symbols[symBanner] - k.symbols[symText])
	got := make([]byte, len(want))
	for text := k.firstPlace(); text < k.arch.last; text += k.arch.step {
		if mem.Read(got, text+from) != nil {
			continue
		}
		if bytes.Equal(got, want) {
			return text, nil
		}
	}
	return 0, fmt.Errorf("%w from %v to %v: it says %q", ErrNotThere, k.firstPlace(), k.arch.last,
		want[:min(len(want), 64)])
}

// firstPlace returns the lowest address where the kernel can lie: one for x86_64 may be built for another one than is
// usual. What it says in memory is where it has moved itself.
func (k *Kernel) firstPlace() guestmem.Addr {
	built := k.symbols[symText] - x86Map
	if k.banner != "" && k.arch.name == "x86_64" && built < uint64(k.arch.last) {
		return guestmem.Addr(built)
	}
	return k.arch.first
}

// mappedAt returns the address at which the kernel says that it runs.
func (k *Kernel) mappedAt(mem *guestmem.Memory, text guestmem.Addr,
	place func(string) guestmem.Addr) (uint64, error) {
	word, err := mem.Uint64(place(k.arch.symbols[1]))
	if err != nil {
		return 0, fmt.Errorf("%w: %s: %w", ErrNotThere, k.arch.symbols[1], err)
	}
	if k.arch.name == "x86_64" {
		return uint64(text) - word.Load() + x86Map, nil
	}
	return uint64(text) + word.Load(), nil
}

// The header of an arm64 kernel's image: linux, Documentation/arch/arm64/booting.rst.
const (
	offImageFlags = 24
	offImageMagic = 56
	imageMagic    = "ARM\x64"
)

// pageShift returns the size of the kernel's pages, as a power of two: an arm64 kernel's header has it.
func (k *Kernel) pageShift(mem *guestmem.Memory, text guestmem.Addr) uint {
	var head [offImageMagic + len(imageMagic)]byte
	if k.arch.name != "arm64" || mem.Read(head[:], text) != nil || string(head[offImageMagic:]) != imageMagic {
		return 12
	}
	switch binary.LittleEndian.Uint64(head[offImageFlags:]) >> 1 & 3 {
	case 2:
		return 14
	case 3:
		return 16
	}
	return 12
}
