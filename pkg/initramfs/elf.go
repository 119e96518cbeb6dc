package initramfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// What is read of an ELF file is bounded; debug/elf reads more of it, and from sections, which a loader does
// not look at and a file need not have.
const (
	maxProgHeaders = 64 << 10 // bytes; the kernel's own limit: fs/binfmt_elf.c
	maxDynamic     = 1 << 20  // bytes
	maxNeeded      = 4096     // libraries
	maxSearchPath  = 64 << 10 // bytes of RPATH or RUNPATH
)

var errNotELF = errors.New("it is no ELF file")

// object is what a loader wants to know of a program or a library.
type object struct {
	abi
	interp         string // the loader that a dynamic program names
	needed         []string
	soname         string
	rpath, runpath string
	noDefault      bool // DF_1_NODEFLIB: nothing is looked for in the default folders
}

// abi is what all objects of a process have in common.
type abi struct {
	machine elf.Machine
	class   elf.Class
	order   elf.Data
}

// elfReader reads an ELF file.
type elfReader struct {
	io.ReaderAt
	abi
	load []elf.ProgHeader // the segments in memory
}

func (r *elfReader) byteOrder() binary.ByteOrder {
	if r.order == elf.ELFDATA2MSB {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// part reads a part of the file, which has at most limit bytes.
func (r *elfReader) part(what string, at, size, limit uint64) ([]byte, error) {
	if size > limit || at > 1<<62 {
		return nil, fmt.Errorf("its %s of %d bytes at 0x%x: at most %d are read", what, size, at, limit)
	}
	b := make([]byte, size)
	if _, err := r.ReadAt(b, int64(at)); err != nil {
		return nil, fmt.Errorf("its %s of %d bytes at 0x%x: %w", what, size, at, cut(err))
	}
	return b, nil
}

// readObject reads what has to do with a program's libraries. What is no ELF file is errNotELF.
func readObject(file io.ReaderAt) (*object, error) {
	r := &elfReader{ReaderAt: file}
	progs, err := r.programHeaders()
	if err != nil {
		return nil, err
	}
	o := &object{abi: r.abi}
	var dynamic *elf.ProgHeader
	for i := range progs {
		p := &progs[i]
		switch p.Type {
		case elf.PT_LOAD:
			r.load = append(r.load, *p)
		case elf.PT_DYNAMIC:
			dynamic = p
		case elf.PT_INTERP:
			b, err := r.part("interpreter's name", p.Off, p.Filesz, maxPath)
			if err != nil {
				return nil, err
			}
			o.interp = text(b)
		}
	}
	if dynamic == nil {
		return o, nil
	}
	return o, r.dynamic(o, dynamic)
}

// programHeaders reads the file's header and what it says of segments.
func (r *elfReader) programHeaders() ([]elf.ProgHeader, error) {
	var b [64]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if n < elf.EI_NIDENT || !bytes.HasPrefix(b[:], []byte(elf.ELFMAG)) {
		return nil, errNotELF
	}
	r.class, r.order = elf.Class(b[elf.EI_CLASS]), elf.Data(b[elf.EI_DATA])
	if r.class != elf.ELFCLASS32 && r.class != elf.ELFCLASS64 || r.order != elf.ELFDATA2LSB && r.order != elf.ELFDATA2MSB {
		return nil, fmt.Errorf("an ELF file of %v and %v", r.class, r.order)
	}
	order := r.byteOrder()
	r.machine = elf.Machine(order.Uint16(b[18:]))
	size, at, each, count := 64, order.Uint64(b[32:]), order.Uint16(b[54:]), order.Uint16(b[56:])
	want := uint16(56)
	if r.class == elf.ELFCLASS32 {
		size, at, each, count = 52, uint64(order.Uint32(b[28:])), order.Uint16(b[42:]), order.Uint16(b[44:])
		want = 32
	}
	if n < size || each != want && count > 0 {
		return nil, fmt.Errorf("a broken ELF header: %d bytes, %d program headers of %d bytes", n, count, each)
	}
	raw, err := r.part("program headers", at, uint64(each)*uint64(count), maxProgHeaders)
	if err != nil {
		return nil, err
	}
	progs := make([]elf.ProgHeader, count)
	for i := range progs {
		progs[i] = r.programHeader(raw[i*int(each):])
	}
	return progs, nil
}

func (r *elfReader) programHeader(b []byte) elf.ProgHeader {
	order := r.byteOrder()
	p := elf.ProgHeader{Type: elf.ProgType(order.Uint32(b))}
	if r.class == elf.ELFCLASS32 {
		p.Off, p.Vaddr, p.Filesz = uint64(order.Uint32(b[4:])), uint64(order.Uint32(b[8:])), uint64(order.Uint32(b[16:]))
	} else {
		p.Off, p.Vaddr, p.Filesz = order.Uint64(b[8:]), order.Uint64(b[16:]), order.Uint64(b[32:])
	}
	return p
}

// dynamic reads the dynamic segment: the ELF specification, "Dynamic Section".
func (r *elfReader) dynamic(o *object, p *elf.ProgHeader) error {
	b, err := r.part("dynamic segment", p.Off, p.Filesz, maxDynamic)
	if err != nil {
		return err
	}
	var table, size uint64 // of its texts
	for tag, value := range r.tags(b) {
		switch tag {
		case elf.DT_STRTAB:
			table = value
		case elf.DT_STRSZ:
			size = value
		case elf.DT_FLAGS_1:
			o.noDefault = elf.DynFlag1(value)&elf.DF_1_NODEFLIB != 0
		}
	}
	for tag, value := range r.tags(b) {
		var to *string
		switch tag {
		case elf.DT_NEEDED:
			if len(o.needed) == maxNeeded {
				return fmt.Errorf("it needs more than %d libraries", maxNeeded)
			}
			o.needed = append(o.needed, "")
			to = &o.needed[len(o.needed)-1]
		case elf.DT_SONAME:
			to = &o.soname
		case elf.DT_RPATH:
			to = &o.rpath
		case elf.DT_RUNPATH:
			to = &o.runpath
		default:
			continue
		}
		if *to, err = r.text(table, size, value); err != nil {
			return err
		}
	}
	return nil
}

// tags yields the entries of a dynamic segment, up to its end.
func (r *elfReader) tags(b []byte) func(yield func(elf.DynTag, uint64) bool) {
	return func(yield func(elf.DynTag, uint64) bool) {
		order, word := r.byteOrder(), r.word()
		for ; len(b) >= 2*word; b = b[2*word:] {
			tag, value := uint64(order.Uint32(b)), uint64(order.Uint32(b[word:]))
			if word == 8 {
				tag, value = order.Uint64(b), order.Uint64(b[word:])
			}
			if elf.DynTag(tag) == elf.DT_NULL || !yield(elf.DynTag(tag), value) {
				return
			}
		}
	}
}

func (r *elfReader) word() int {
	if r.class == elf.ELFCLASS32 {
		return 4
	}
	return 8
}

// text is what stands in the table of strings, which lies at an address in memory.
func (r *elfReader) text(table, size, at uint64) (string, error) {
	if at >= size {
		return "", fmt.Errorf("a name at %d in a table of %d bytes", at, size)
	}
	for _, p := range r.load {
		if table < p.Vaddr || table-p.Vaddr >= p.Filesz || size > p.Filesz-(table-p.Vaddr) {
			continue
		}
		from, most := p.Off+(table-p.Vaddr)+at, size-at
		for n := uint64(128); ; n *= 8 {
			b, err := r.part("names", from, min(n, most), maxSearchPath*8)
			if err != nil {
				return "", err
			}
			if name, _, ok := bytes.Cut(b, []byte{0}); ok && len(name) <= maxSearchPath {
				return string(name), nil
			}
			if n >= most || n > maxSearchPath {
				return "", fmt.Errorf("a name of more than %d bytes", min(n, most))
			}
		}
	}
	return "", fmt.Errorf("its names at address 0x%x are in none of its segments", table)
}

// expand puts values in the place of a loader's variables: ld.so(8), "Dynamic string tokens". What $LIB and
// $PLATFORM are was compiled into the loader, so there are several of each.
func (o *object) expand(path, origin string) []string {
	paths := []string{path}
	tokens := map[string][]string{"ORIGIN": {origin}, "LIB": o.libNames(), "PLATFORM": {platforms[o.machine]}}
	for name, values := range tokens {
		var next []string
		for _, p := range paths {
			if !strings.Contains(p, "$"+name) && !strings.Contains(p, "${"+name+"}") {
				next = append(next, p)
				continue
			}
			for _, v := range values {
				next = append(next, strings.NewReplacer("${"+name+"}", v, "$"+name, v).Replace(p))
			}
		}
		paths = next
	}
	return paths
}
