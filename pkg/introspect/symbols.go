package introspect

import (
	"bufio"
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/ktstr/ktstr-vmm/internal/elffile"
)

// Symbols name the addresses of a kernel's functions. They may be used concurrently. The zero value names nothing.
type Symbols struct {
	addresses []uint64 // as the kernel was linked, in order
	names     []uint32 // where in text the name of each begins, and where the last one ends
	text      []byte
	slide     uint64 // how far behind that the kernel runs
}

const (
	maxNames    = 32 << 20 // bytes of all names: those of distributions have 4 MiB
	maxFunction = 1 << 20  // bytes: what lies further behind a symbol is not its function
	maxMap      = 64 << 20 // bytes of a System.map: those of distributions have 8 MiB
	maxTable    = 64 << 20 // bytes of a vmlinux's symbols, and of their names: those of distributions have 5 MiB
)

// ends are the symbols behind which there are no functions, up to the next one.
var ends = []string{"_etext", "_einittext", "_end"}

// add appends a symbol. One more than there is room for is left out.
func (s *Symbols) add(address uint64, name []byte) {
	if len(s.addresses) == maxSymbols || len(s.text)+len(name) > maxNames {
		return
	}
	s.addresses = append(s.addresses, address)
	s.names = append(s.names, uint32(len(s.text)))
	s.text = append(s.text, name...)
}

func (s *Symbols) name(i int) string {
	end := len(s.text)
	if i+1 < len(s.names) {
		end = int(s.names[i+1])
	}
	return string(s.text[s.names[i]:end])
}

// Name returns an address as the kernel writes it, such as "schedule+0x1c/0x2f0": the function, how far behind its
// start the address is, and how far the next symbol. It returns "" for an address that is in no known function, such as
// one of a module or of user space. Of several names for a function it is the first.
//
// A name from the guest's memory may have any bytes.
func (s Symbols) Name(address uint64) string {
	linked := address - s.slide
	next := sort.Search(len(s.addresses), func(i int) bool { return s.addresses[i] > linked })
	if next == 0 || next == len(s.addresses) {
		return ""
	}
	start := s.addresses[next-1]
	first := sort.Search(next, func(i int) bool { return s.addresses[i] >= start })
	if linked-start >= maxFunction {
		return ""
	}
	for i := first; i < next; i++ {
		if slices.Contains(ends, s.name(i)) {
			return ""
		}
	}
	return fmt.Sprintf("%s+0x%x/0x%x", s.name(first), linked-start, s.addresses[next]-start)
}

// isCode reports whether a symbol is in a kernel's code, by its type's letter as nm(1) has it.
func isCode(letter byte) bool { return strings.IndexByte("tTwW", letter) >= 0 }

// symbol is a symbol of a kernel's file.
type symbol struct {
	address uint64
	name    []byte
}

// keep keeps symbols of code, in the order of their addresses.
func (k *Kernel) keep(code []symbol) {
	slices.SortStableFunc(code, func(a, b symbol) int { return cmp.Compare(a.address, b.address) })
	for _, c := range code {
		k.code.add(c.address, c.name)
	}
}

// readSymbols reads the symbols of an ELF file: those that are wanted, and its functions'. debug/elf would copy the
// name of each, however long it is.
func (k *Kernel) readSymbols(f *elf.File) error {
	table := f.SectionByType(elf.SHT_SYMTAB)
	if table == nil || int64(table.Link) >= int64(len(f.Sections)) {
		return elf.ErrNoSymbols
	}
	entries, err := elffile.Data(table, maxTable)
	if err != nil {
		return err
	}
	names, err := elffile.Data(f.Sections[table.Link], maxTable)
	if err != nil {
		return err
	}
	wanted := k.arch.wanted()
	var code []symbol
	for le := binary.LittleEndian; len(entries) >= elf.Sym64Size; entries = entries[elf.Sym64Size:] {
		// As elf.Sym64 has it: name, info, other, section, value, size.
		info, section, address := entries[4], int(le.Uint16(entries[6:])), le.Uint64(entries[8:])
		name := names[min(uint64(le.Uint32(entries)), uint64(len(names))):]
		name = name[:min(len(name), maxName+1)]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		if section == int(elf.SHN_UNDEF) || len(name) == 0 {
			continue
		}
		if i := slices.Index(wanted, string(name)); i >= 0 {
			k.symbols[wanted[i]] = address
		}
		if section >= len(f.Sections) || f.Sections[section].Flags&elf.SHF_EXECINSTR == 0 ||
			name[0] == '$' || name[0] == '.' || len(code) == maxSymbols { // the first two are what assemblers make
			continue
		}
		if kind := elf.ST_TYPE(info); kind == elf.STT_FUNC || kind == elf.STT_NOTYPE {
			code = append(code, symbol{address, name[:min(len(name), maxName)]})
		}
	}
	k.keep(code)
	return nil
}

// ReadSystemMap reads the symbols of a kernel from its System.map. It has no types, so there is no looking at CPUs with
// it: View.Look fails with ErrTypes. ReadSystemMap fails with ErrSymbols for one that lacks a symbol that is needed to
// find the kernel in a guest's memory.
func ReadSystemMap(r io.Reader) (*Kernel, error) {
	k := &Kernel{symbols: map[string]uint64{}}
	var code []symbol
	var wanted []string
	for _, a := range arches {
		wanted = append(wanted, a.wanted()...)
	}
	lines := bufio.NewScanner(io.LimitReader(r, maxMap))
	for lines.Scan() { // which gives up at a line of 64 KiB
		// As nm(1) writes it: address, type, name.
		number, rest, _ := strings.Cut(lines.Text(), " ")
		kind, name, ok := strings.Cut(rest, " ")
		address, err := strconv.ParseUint(number, 16, 64)
		if !ok || err != nil || len(kind) != 1 {
			return nil, fmt.Errorf("%w: no System.map: a line of it is %.64q", ErrSymbols, lines.Text())
		}
		if slices.Contains(wanted, name) {
			k.symbols[name] = address
		}
		if isCode(kind[0]) && len(code) < maxSymbols {
			code = append(code, symbol{address, []byte(name[:min(len(name), maxName)])})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: no System.map: %w", ErrSymbols, err)
	}
	k.arch = arches[0]
	if _, ok := k.symbols[symArm64Virt]; ok {
		k.arch = arches[1]
	}
	k.keep(code)
	if err := k.check(); err != nil {
		return nil, err
	}
	return k, nil
}

// Symbols returns the kernel's functions', at the addresses for which it was linked.
func (k *Kernel) Symbols() Symbols { return k.code }

// Symbols returns the kernel's functions', at the addresses where it runs in this guest.
func (v *View) Symbols() Symbols { return v.code }
