package elffile_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"runtime"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/elffile"
)

// file is an ELF file of sections, the last of which has the names.
func file(sections []elf.Section64, names []byte) []byte {
	var b bytes.Buffer
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shoff: 64,
		Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1)}
	copy(header.Ident[:], "\x7fELF\x02\x01\x01")
	last := &sections[len(sections)-1]
	last.Type, last.Off, last.Size = uint32(elf.SHT_STRTAB), uint64(64+64*len(sections)), uint64(len(names))
	_ = binary.Write(&b, binary.LittleEndian, header) // a Buffer takes all
	_ = binary.Write(&b, binary.LittleEndian, sections)
	return append(b.Bytes(), names...)
}

// A few bytes for a section make no megabyte of a name for each of them.
func TestLongNames(t *testing.T) {
	const long = 256 << 10
	image := file(make([]elf.Section64, 512), append(bytes.Repeat([]byte("x"), long), 0))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := elffile.Open(bytes.NewReader(image))
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Error("512 sections with names of 256 KiB each are opened")
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
		t.Errorf("%d bytes of memory for a file of %d", took, len(image))
	}
}

func TestOpen(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elffile.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	want, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Sections) != len(want.Sections) || f.Section(".text") == nil {
		t.Errorf("%d sections, want %d", len(f.Sections), len(want.Sections))
	}
	s := f.Section(".text")
	if _, err := elffile.Data(s, s.Size-1); err == nil {
		t.Error("more than is wanted of a section is read")
	}
	if data, err := elffile.Data(s, s.Size); err != nil || uint64(len(data)) != s.Size {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	s.Flags |= elf.SHF_COMPRESSED
	if _, err := elffile.Data(s, s.Size); err == nil {
		t.Error("a section is unpacked")
	}
	for name, change := range map[string]func(b []byte) []byte{
		"nothing":       func([]byte) []byte { return nil },
		"32 bits":       func(b []byte) []byte { b[elf.EI_CLASS] = 1; return b },
		"big-endian":    func(b []byte) []byte { b[elf.EI_DATA] = 2; return b },
		"no names":      func(b []byte) []byte { b[0x3e], b[0x3f] = 0xff, 0xff; return b },
		"many sections": func(b []byte) []byte { b[0x3c], b[0x3d] = 0, 0; return b },
		"large headers": func(b []byte) []byte { b[0x3a], b[0x3b] = 0, 1; return b },
		"cut":           func(b []byte) []byte { return b[:len(b)/2] },
	} {
		if _, err := elffile.Open(bytes.NewReader(change(bytes.Clone(image)))); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
