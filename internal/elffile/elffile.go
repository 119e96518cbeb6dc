// Package elffile opens ELF files that may come from anywhere. debug/elf copies the name of each section, also where
// thousands of them have one that is a megabyte long, and unpacks whatever says that it is packed: a small file would
// take all of the memory there is.
package elffile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	maxNames    = 16 << 20 // bytes, of a file's section names: those of kernels and modules have a few KiB
	headerSize  = 64       // of a 64-bit file, as the following are
	sectionSize = 64
	offShoff    = 0x28
	offShnum    = 0x3c
)

// Open opens a file with its sections. Beside debug/elf's reasons it fails for one that is not of 64 bits and
// little-endian, and where names of sections are longer than any file's.
func Open(r io.ReaderAt) (*elf.File, error) {
	header := make([]byte, headerSize)
	if n, err := r.ReadAt(header, 0); err != nil || !bytes.HasPrefix(header, []byte(elf.ELFMAG)) {
		return elf.NewFile(bytes.NewReader(header[:n])) // which says what it misses
	}
	if elf.Class(header[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(header[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("it is of %v and %v, not of %v and %v", elf.Class(header[elf.EI_CLASS]),
			elf.Data(header[elf.EI_DATA]), elf.ELFCLASS64, elf.ELFDATA2LSB)
	}
	if err := checkNames(r, header); err != nil {
		return nil, fmt.Errorf("its section headers: %w", err)
	}
	return elf.NewFile(r)
}

// checkNames checks how long the names are that debug/elf makes of a file's section headers.
func checkNames(r io.ReaderAt, header []byte) error {
	le := binary.LittleEndian
	at, n, names := le.Uint64(header[offShoff:]), int(le.Uint16(header[offShnum:])), int(le.Uint16(header[offShnum+2:]))
	switch size := le.Uint16(header[offShnum-2:]); {
	case at == 0:
		return nil // it has none
	case n == 0 || names >= n:
		return fmt.Errorf("they are %d, and their names in number %d", n, names)
	case size != sectionSize:
		return fmt.Errorf("one has %d bytes, they have %d", size, sectionSize)
	}
	table := make([]byte, n*sectionSize)
	if _, err := io.ReadFull(io.NewSectionReader(r, int64(at), int64(len(table))), table); err != nil {
		return err
	}
	s := table[names*sectionSize:]
	flags, from, size := elf.SectionFlag(le.Uint64(s[8:])), le.Uint64(s[24:]), le.Uint64(s[32:])
	if size > maxNames || flags&elf.SHF_COMPRESSED != 0 {
		return fmt.Errorf("their names have %d bytes, with the flags %v; %d are the most, and not packed", size, flags,
			maxNames)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, int64(from), int64(size)), text); err != nil {
		return err
	}
	for all := 0; len(table) > 0; table = table[sectionSize:] {
		name := text[min(uint64(le.Uint32(table)), size):]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		if all += len(name); all > maxNames {
			return fmt.Errorf("their names have more than %d bytes", maxNames)
		}
	}
	return nil
}

// Data returns what is in a section, which may have so many bytes at most. A section that is packed is an error.
func Data(s *elf.Section, most uint64) ([]byte, error) {
	if s.Flags&elf.SHF_COMPRESSED != 0 {
		return nil, fmt.Errorf("its section %.64q is packed", s.Name)
	}
	if s.Size > most {
		return nil, fmt.Errorf("its section %.64q has %d bytes, %d are the most", s.Name, s.Size, most)
	}
	return s.Data()
}
