package introspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// A kernel's types: linux, Documentation/bpf/btf.rst. They are read here and not by cilium/ebpf, because a guest may
// have changed them: its parser follows a chain of types by recursion, and a long one ends the process.
const (
	btfMagic  = "\x9f\xeb\x01" // little-endian, version 1
	btfHeader = 24
	maxBTF    = 32 << 20 // those of distributions have 5 MiB

	btfType   = 12 // bytes of a type, before what is particular to its kind, and of a member
	btfKFlag  = 1 << 31
	maxChain  = 64 // types that lead to another one: typedefs, const and so on
	maxNested = 8  // structures without a name in each other
)

// The kinds of types.
const (
	kindInt       = 1
	kindPointer   = 2
	kindArray     = 3
	kindStruct    = 4
	kindUnion     = 5
	kindEnum      = 6
	kindTypedef   = 8
	kindVolatile  = 9
	kindConst     = 10
	kindRestrict  = 11
	kindFuncProto = 13
	kindVar       = 14
	kindDatasec   = 15
	kindDeclTag   = 17
	kindTypeTag   = 18
	kindEnum64    = 19
	kinds         = 20
)

// Bytes behind a type of a kind, and for each of its members.
var (
	kindExtra  = [kinds]int{kindInt: 4, kindArray: 12, kindVar: 4, kindDeclTag: 4}
	kindMember = [kinds]int{
		kindStruct: 12, kindUnion: 12, kindEnum: 8, kindFuncProto: 8, kindDatasec: 12, kindEnum64: 12,
	}
)

var errBTF = errors.New("they are broken")

// btf is the types of a kernel, whose bytes are checked as they are used.
type btf struct {
	types, names []byte
	offsets      []uint32 // of each type in types, by its ID; that of 0, void, is not used
	effort       *effort
}

// typ is a type.
type typ struct {
	name, info, size uint32 // size is a type's ID where there is no size
	members          []byte
}

func (t typ) kind() int      { return int(t.info >> 24 & 0x1f) }
func (t typ) count() int     { return int(t.info & 0xffff) }
func (t typ) bitfield() bool { return t.info&btfKFlag != 0 }

// btfSize returns the size of the types that a header is for; 0 if it is no header.
func btfSize(b []byte) int {
	if len(b) < btfHeader || string(b[:len(btfMagic)]) != btfMagic || binary.LittleEndian.Uint32(b[4:]) != btfHeader {
		return 0
	}
	field := func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(b[i:])) }
	types, typesSize, names, namesSize := field(8), field(12), field(16), field(20)
	size := btfHeader + names + namesSize
	if types != 0 || typesSize == 0 || names < typesSize || size > maxBTF || size > uint64(len(b)) {
		return 0
	}
	return int(size)
}

// parseBTF reads types, with their header.
func parseBTF(b []byte, e *effort) (*btf, error) {
	size := btfSize(b)
	if size == 0 {
		return nil, fmt.Errorf("%w: no header of %d bytes at most", errBTF, maxBTF)
	}
	typesSize, names := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[16:])
	t := &btf{types: b[btfHeader : btfHeader+typesSize], names: b[btfHeader+names : size], offsets: []uint32{0}, effort: e}
	for at := 0; at < len(t.types); {
		t.offsets = append(t.offsets, uint32(at))
		n := t.length(at)
		if n == 0 || n > len(t.types)-at || !e.spend() {
			return nil, fmt.Errorf("%w: type %d", errBTF, len(t.offsets)-1)
		}
		at += n
	}
	return t, nil
}

// length returns how many bytes the type at an offset has; 0 for one that is cut short or of an unknown kind.
func (t *btf) length(at int) int {
	if len(t.types)-at < btfType {
		return 0
	}
	info := typ{info: binary.LittleEndian.Uint32(t.types[at+4:])}
	if info.kind() >= kinds || info.kind() == 0 {
		return 0
	}
	return btfType + kindExtra[info.kind()] + kindMember[info.kind()]*info.count()
}

// get returns a type by its ID.
func (t *btf) get(id uint32) (typ, bool) {
	if id == 0 || uint64(id) >= uint64(len(t.offsets)) {
		return typ{}, false
	}
	b := t.types[t.offsets[id]:]
	b = b[:t.length(int(t.offsets[id]))]
	return typ{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:]),
		b[btfType:]}, true
}

// underlying returns the type that a typedef and the like stand for.
func (t *btf) underlying(id uint32) (typ, bool) {
	for range maxChain {
		u, ok := t.get(id)
		if !ok || !t.effort.spend() {
			return typ{}, false
		}
		switch u.kind() {
		case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = u.size
		default:
			return u, true
		}
	}
	return typ{}, false
}

// sizeOf returns the size of a type's values in bytes; false if it has none.
func (t *btf) sizeOf(id uint32) (uint32, bool) {
	u, ok := t.underlying(id)
	if !ok {
		return 0, false
	}
	switch u.kind() {
	case kindInt, kindStruct, kindUnion, kindEnum, kindEnum64:
		return u.size, true
	case kindPointer:
		return 8, true
	case kindArray: // of what is no array
		element, ok := t.underlying(binary.LittleEndian.Uint32(u.members))
		n := binary.LittleEndian.Uint32(u.members[8:])
		if !ok || element.kind() != kindInt || element.size > 16 || n > 1<<20 {
			return 0, false
		}
		return element.size * n, true
	}
	return 0, false
}

// named reports whether the name at an offset is that one.
func (t *btf) named(offset uint32, name string) bool {
	if uint64(offset)+uint64(len(name)) >= uint64(len(t.names)) {
		return false
	}
	b := t.names[offset:]
	return string(b[:len(name)]) == name && b[len(name)] == 0
}

// structure returns the structure of a name.
func (t *btf) structure(name string) (typ, bool) {
	for id := 1; id < len(t.offsets); id++ {
		if u, _ := t.get(uint32(id)); u.kind() == kindStruct && t.named(u.name, name) {
			return u, true
		}
	}
	return typ{}, false
}

// member returns where a structure has the member that a path like "a.b" names, also in what has no name itself.
func (t *btf) member(u typ, path string) (member, bool) {
	at := uint32(0)
	for {
		name, rest, nested := strings.Cut(path, ".")
		id, offset, ok := t.direct(u, name, maxNested)
		if !ok {
			return member{}, false
		}
		at += offset
		if !nested {
			size, ok := t.sizeOf(id)
			return member{at, size}, ok
		}
		if u, ok = t.underlying(id); !ok {
			return member{}, false
		}
		path = rest
	}
}

// direct returns the type of a member and where it is, in bytes. Bit fields are not found.
func (t *btf) direct(u typ, name string, depth int) (id, offset uint32, ok bool) {
	if u.kind() != kindStruct && u.kind() != kindUnion {
		return 0, 0, false
	}
	for m := u.members; len(m) >= btfType; m = m[btfType:] {
		if !t.effort.spend() {
			return 0, 0, false
		}
		nameAt, id := binary.LittleEndian.Uint32(m), binary.LittleEndian.Uint32(m[4:])
		bits := binary.LittleEndian.Uint32(m[8:])
		if u.bitfield() && bits>>24 != 0 || bits%8 != 0 {
			continue
		}
		if t.named(nameAt, name) {
			return id, bits / 8, true
		}
		if depth == 0 || !t.named(nameAt, "") {
			continue
		}
		inner, ok := t.underlying(id)
		if !ok {
			continue
		}
		if id, at, ok := t.direct(inner, name, depth-1); ok {
			return id, bits/8 + at, true
		}
	}
	return 0, 0, false
}

// findBTF finds types in an image of a kernel, from a place on, and returns where the next may be.
func findBTF(image []byte, from int, e *effort) (b []byte, next int) {
	for e.spend() {
		i := bytes.Index(image[from:], []byte(btfMagic))
		if i < 0 {
			return nil, len(image)
		}
		from += i + 1
		if size := btfSize(image[from-1:]); size > 0 {
			return image[from-1 : from-1+size], from
		}
	}
	return nil, len(image)
}
