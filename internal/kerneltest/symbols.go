package kerneltest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"testing"
)

// kallsyms is the symbol table as scripts/kallsyms.c writes it, but for one thing: no token stands for more than one
// letter but "func".
func (k Kernel) kallsyms() []byte {
	var names, markers, tokens, index, offsets, sequences []byte
	const function = 0xf0 // the token "func"
	for i := range 256 {
		index = le.AppendUint16(index, uint16(len(tokens)))
		switch {
		case i == function:
			tokens = append(tokens, "func"...)
		case i >= ' ' && i <= 'z':
			tokens = append(tokens, byte(i))
		}
		tokens = append(tokens, 0)
	}
	list := k.symbols()
	base := k.arch().link
	for i, s := range list {
		if i%256 == 0 {
			markers = le.AppendUint32(markers, uint32(len(names)))
		}
		packed := bytes.Replace([]byte(s.name), []byte("func"), []byte{function}, 1)
		names = append(append(names, byte(len(packed))), packed...)
		offset := uint32(s.address - base)
		if k.Arch == "x86_64" { // CONFIG_KALLSYMS_ABSOLUTE_PERCPU
			offset = uint32(base - 1 - s.address)
			if s.address < base {
				offset = uint32(s.address)
			}
		}
		offsets = le.AppendUint32(offsets, offset)
		sequences = append(sequences, byte(i>>16), byte(i>>8), byte(i))
	}
	count := le.AppendUint32(nil, uint32(len(list)))
	where := le.AppendUint64(nil, base)
	if k.Arch == "x86_64" { // where the kernel has relocated itself
		where = le.AppendUint64(nil, base+k.Slid)
	}
	first := [][]byte{offsets, where}
	middle := [][]byte{count, names, markers}
	last := [][]byte{tokens, index}
	var table []byte
	for _, part := range map[Order][][]byte{
		Linux61:  join(first, middle, last),
		Linux62:  join(first, middle, [][]byte{sequences}, last),
		Linux612: join(middle, last, first, [][]byte{sequences}),
	}[k.Order] {
		table = append(table, part...)
		for len(table)%8 != 0 {
			table = append(table, 0)
		}
	}
	return table
}

func join(lists ...[][]byte) (all [][]byte) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// code reports whether a symbol is a function's.
func (s symbol) code() bool { return s.name[0] == 't' || s.name[0] == 'T' }

// SystemMap returns the kernel's System.map.
func (k Kernel) SystemMap() (text []byte) {
	k = k.withDefaults()
	for _, s := range k.symbols() {
		text = fmt.Appendf(text, "%016x %c %s\n", s.address, s.name[0], s.name[1:])
	}
	return text
}

// Vmlinux returns the kernel as an ELF file with its symbols, its types and its banner.
func (k Kernel) Vmlinux(t testing.TB) []byte {
	t.Helper()
	k = k.withDefaults()
	link := k.arch().link
	var symtab bytes.Buffer
	strtab := []byte{0}
	put := func(b *bytes.Buffer, v any) {
		if err := binary.Write(b, le, v); err != nil {
			t.Fatal(err)
		}
	}
	put(&symtab, elf.Sym64{})
	for _, s := range k.symbols() {
		section := uint16(1)
		if s.code() {
			section = 5
		}
		put(&symtab, elf.Sym64{Name: uint32(len(strtab)), Shndx: section, Value: s.address})
		strtab = append(append(strtab, s.name[1:]...), 0)
	}
	var types []byte
	if !k.NoTypes {
		types = k.Types(t)
	}
	const names = "\x00.rodata\x00.BTF\x00.symtab\x00.strtab\x00.shstrtab\x00.text\x00"
	sections := []struct {
		elf.Section64
		data []byte
	}{
		{},
		{elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Addr: link + offBanner}, []byte(banner + "\x00")},
		{elf.Section64{Name: 9, Type: uint32(elf.SHT_PROGBITS)}, types},
		{elf.Section64{Name: 14, Type: uint32(elf.SHT_SYMTAB), Link: 4, Entsize: elf.Sym64Size}, symtab.Bytes()},
		{elf.Section64{Name: 22, Type: uint32(elf.SHT_STRTAB)}, strtab},
		{elf.Section64{Name: 40, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_EXECINSTR)}, nil},
		{elf.Section64{Name: 30, Type: uint32(elf.SHT_STRTAB)}, []byte(names)},
	}
	const headerSize, sectionSize = 64, 64
	var table, data bytes.Buffer
	for _, s := range sections {
		s.Off, s.Size = uint64(headerSize+len(sections)*sectionSize+data.Len()), uint64(len(s.data))
		put(&table, s.Section64)
		data.Write(s.data)
	}
	machine := map[string]elf.Machine{"x86_64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[k.Arch]
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Ehsize: headerSize,
		Shoff: headerSize, Shentsize: sectionSize, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1)}
	copy(header.Ident[:], "\x7fELF\x02\x01\x01")
	var file bytes.Buffer
	put(&file, header)
	file.Write(table.Bytes())
	file.Write(data.Bytes())
	return file.Bytes()
}
