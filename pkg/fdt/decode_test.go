package fdt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/fdt"
)

var be = binary.BigEndian

// blocks are the parts of a tree, as a test writes them.
type blocks struct {
	reserve   []byte
	structure []byte
	names     []byte
	header    func(field []byte) // changes the header; nil: as it should be
}

// encode puts the parts one behind the other.
func (b blocks) encode() []byte {
	const header = 40
	if b.reserve == nil {
		b.reserve = make([]byte, 16)
	}
	structure := header + len(b.reserve)
	names := structure + len(b.structure)
	size := names + len(b.names)
	var tree []byte
	for _, v := range []int{0xd00dfeed, size, structure, names, header, 17, 16, 0, len(b.names), len(b.structure)} {
		tree = be.AppendUint32(tree, uint32(v))
	}
	if b.header != nil {
		b.header(tree)
	}
	tree = append(tree, b.reserve...)
	tree = append(tree, b.structure...)
	return append(tree, b.names...)
}

// The names of a test's properties, and where they are.
const names = "reg\x00device_type\x00#address-cells\x00#size-cells\x00ranges\x00status\x00no-map\x00"

func nameAt(name string) uint32 { return uint32(strings.Index(names, name+"\x00")) }

// structure writes a structure block. In s, "name{" opens a node and "}" closes one; "name=value" is a property,
// whose value are hexadecimal cells with commas between them, or a word in quotes; nop and end are themselves.
func structure(s string) []byte {
	var b []byte
	for _, word := range strings.Fields(s) {
		name, value, isProperty := strings.Cut(word, "=")
		switch {
		case word == "}":
			b = be.AppendUint32(b, 2)
		case word == "nop":
			b = be.AppendUint32(b, 4)
		case word == "end":
			b = be.AppendUint32(b, 9)
		case isProperty:
			v := propertyValue(value)
			b = be.AppendUint32(be.AppendUint32(be.AppendUint32(b, 3), uint32(len(v))), nameAt(name))
			b = append(b, v...)
		default:
			b = append(be.AppendUint32(b, 1), strings.TrimSuffix(word, "{")+"\x00"...)
		}
		b = append(b, make([]byte, -len(b)&3)...)
	}
	return b
}

func propertyValue(s string) (v []byte) {
	if strings.HasPrefix(s, `"`) {
		return append([]byte(strings.Trim(s, `"`)), 0)
	}
	for cell := range strings.SplitSeq(s, ",") {
		if n, err := strconv.ParseUint(cell, 16, 32); err == nil { // there may be none
			v = be.AppendUint32(v, uint32(n))
		}
	}
	return v
}

// A tree of others: what it says of memory, whatever form it says it in.
func TestDecode(t *testing.T) {
	for _, tc := range []struct {
		name, tree string
		want       fdt.Memory
	}{
		{"nothing", "{ } end", fdt.Memory{}},
		{
			"no cells given", `{ memory@1{ device_type="memory" reg=1,0,1000 } } end`,
			fdt.Memory{RAM: []fdt.Range{{Start: 1 << 32, Size: 0x1000}}},
		},
		{
			"a cell each, an empty range",
			`{ #address-cells=1 #size-cells=1 m{ reg=1000,1000,5000,0,8000,2000 device_type="memory" } } end`,
			fdt.Memory{RAM: []fdt.Range{{Start: 0x1000, Size: 0x1000}, {Start: 0x8000, Size: 0x2000}}},
		},
		{
			"NOPs, and memory that is none",
			`nop { nop a{ memory{ device_type="memory" reg=0,1,1 b{ c{ reg=1 } reg=1 } } } memory{ reg=0,1,1 } nop } nop end`,
			fdt.Memory{},
		},
		{
			"memory that is off", `{ l{ device_type="memory" status="disabled" reg=0,1,1 }
				m{ device_type="memory" status="okay" reg=0,2,1 } n{ device_type="memory" status="ok" reg=0,3,1 } } end`,
			fdt.Memory{RAM: []fdt.Range{{Start: 2, Size: 1}, {Start: 3, Size: 1}}},
		},
		{
			"reserved by other cells, without a place, off", `{ reserved-memory{ #address-cells=2 #size-cells=2 ranges=
				a{ } b@3{ no-map= reg=0,3,1,0,0,9,0,1 } c{ status="disabled" reg=0,1,0,1 } } } end`,
			fdt.Memory{Reserved: []fdt.Reserved{
				{Name: "b@3", Range: fdt.Range{Start: 3, Size: 1 << 32}, NoMap: true},
				{Name: "b@3", Range: fdt.Range{Start: 9, Size: 1}, NoMap: true},
			}},
		},
		{"all that is reserved is off", `{ reserved-memory{ status="disabled" b@3{ reg=0,3,1 } } } end`, fdt.Memory{}},
	} {
		b := blocks{structure: structure(tc.tree), names: []byte(names)}
		got, err := fdt.Decode(append(b.encode(), "what follows"...))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	field := func(off int, v uint32) func([]byte) { return func(h []byte) { be.PutUint32(h[off:], v) } }
	of := func(s string) blocks { return blocks{structure: structure(s), names: []byte(names)} }
	good := of("{ } end").structure
	open := of("{").structure
	reserve := func(at, size uint64) []byte {
		return append(be.AppendUint64(be.AppendUint64(nil, at), size), make([]byte, 16)...)
	}
	for name, b := range map[string]blocks{
		"magic":                       {structure: good, header: field(0, 0xd00dfeee)},
		"size of less than a header":  {structure: good, header: field(4, 39)},
		"size of more than there is":  {structure: good, header: field(4, 500)},
		"size of more than there may": {structure: good, names: make([]byte, fdt.MaxSize)},
		"structure not aligned":       {structure: good, reserve: make([]byte, 18)},
		"structure in the header":     {structure: good, header: field(8, 36)},
		"structure behind the end":    {structure: good, header: field(8, 0xfffffffc)},
		"strings behind the end":      {structure: good, header: field(12, 0xfffffffc)},
		"reservations not aligned":    {structure: good, reserve: make([]byte, 24), header: field(16, 44)},
		"reservations in the header":  {structure: good, header: field(16, 32)},
		"reservations behind the end": {structure: good, header: field(16, 0x1000)},
		"reservations without an end": {structure: good, header: field(16, 72)},
		"old version":                 {structure: good, header: field(20, 16)},
		"new version":                 {structure: good, header: field(24, 18)},
		"much of strings":             {structure: good, header: field(32, 0xffffffff)},
		"much structure":              {structure: good, header: field(36, 0xfffffffc)},
		"no structure":                {structure: good, header: field(36, 0)},
		"structure cut short":         {structure: good, header: field(36, uint32(len(good))-4)},
		"reservation over the end":    {structure: good, reserve: reserve(1<<63, 1<<63)},
		"reservation of nothing":      {structure: good, reserve: reserve(1, 0)},
		"no root":                     of("end"),
		"two roots":                   of("{ } { } end"),
		"closed too often":            of("{ } } end"),
		"closed too late":             of("{ a{ } end"),
		"property of nothing":         of("reg=1 { } end"),
		"property behind the root":    of("{ } reg=1 end"),
		"property behind a node":      of("{ a{ } reg=1 } end"),
		"property twice":              of("{ a{ reg=1 reg=1 } } end"),
		"property without a name":     {structure: of("{ a=1 } end").structure, names: []byte("reg")},
		"name with a space in it":     {structure: of("{ reg=1 } end").structure, names: []byte("r g\x00")},
		"name of 256 bytes": {structure: of("{ reg=1 } end").structure, names: []byte(strings.Repeat("a",
			256) + "\x00")},
		"root with a name":           of("a{ } end"),
		"node without a name":        of("{ { } } end"),
		"node with an escape":        of("{ \x1b[2J{ } } end"),
		"node's name without an end": {structure: append(open, 0, 0, 0, 1, 'a', 'a', 'a', 'a')},
		"value beyond the end": {structure: append(open, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0),
			names: []byte(names)},
		"unknown token":                 {structure: append(open, 0, 0, 0, 5)},
		"RAM over the end":              of(`{ m{ device_type="memory" reg=ffffffff,ffffffff,1 } } end`),
		"RAM of half a range":           of(`{ m{ device_type="memory" reg=0,0 } } end`),
		"ranges of nothing":             of(`{ #address-cells=0 #size-cells=0 m{ device_type="memory" reg=0 } } end`),
		"addresses of three cells":      of(`{ #address-cells=3 m{ device_type="memory" reg=0,0,0,0 } } end`),
		"sizes of three cells":          of(`{ #size-cells=3 m{ device_type="memory" reg=0,0,0,0,0 } } end`),
		"cells of two cells":            of(`{ #size-cells=0,1 m{ device_type="memory" reg=0,0,0 } } end`),
		"reserved, but not of memory":   of(`{ reserved-memory{ a{ reg=0,0,1 } } } end`),
		"reserved at another address":   of(`{ reserved-memory{ ranges=1,2,3 a{ reg=0,0,1 } } } end`),
		"reserved of half a range":      of(`{ reserved-memory{ ranges= a{ reg=0,0 } } } end`),
		"reserved beyond the last byte": of(`{ reserved-memory{ ranges= a{ reg=ffffffff,ffffffff,2 } } } end`),
	} {
		if m, err := fdt.Decode(b.encode()); !errors.Is(err, fdt.ErrFormat) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	tree := encode(t, machines()["other"])
	for n := range tree {
		if _, err := fdt.Decode(tree[:n]); !errors.Is(err, fdt.ErrFormat) {
			t.Fatalf("the first %d bytes of %d: %v", n, len(tree), err)
		}
	}
}

// The largest tree that is read takes little memory beside its own, whatever it is full of.
func TestDecodeTakesLittle(t *testing.T) {
	fill := func(before, often, after string) blocks {
		b := structure(before)
		part, end := structure(often), structure(after)
		room := fdt.MaxSize - 40 - 16 - len(names) - len(end) - len(b)
		all := append(append(b, bytes.Repeat(part, room/len(part))...), end...)
		return blocks{structure: all, names: []byte(names)}
	}
	many := bytes.Repeat([]byte{0, 0, 0, 1}, fdt.MaxSize/4-100)
	for name, b := range map[string]blocks{
		"nodes":        fill("{", "a{ }", "} end"),
		"deep nodes":   fill("{", "a{", "end"),
		"properties":   fill("{ a{ b{ c{", "reg=", "} } } } end"),
		"RAM":          fill("{ #address-cells=1 #size-cells=1", `m{ device_type="memory" reg=1,1 }`, "} end"),
		"reserved":     fill("{ reserved-memory{ #address-cells=1 #size-cells=1 ranges=", "a{ reg=1,1 }", "} } end"),
		"ranges":       {structure: reservedAt(many), names: []byte(names)},
		"reservations": {structure: structure("{ } end"), reserve: append(many, make([]byte, 16)...)},
	} {
		tree := b.encode()
		if len(tree) > fdt.MaxSize {
			t.Fatalf("%s: %d bytes", name, len(tree))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := fdt.Decode(tree)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 16*fdt.MaxSize {
			t.Errorf("%s: %d bytes for one of %d: %v", name, got, len(tree), err)
		}
	}
}

// reservedAt is a node of /reserved-memory with a reg of cells.
func reservedAt(reg []byte) []byte {
	b := structure("{ reserved-memory{ #address-cells=1 #size-cells=1 ranges= a{")
	b = be.AppendUint32(be.AppendUint32(be.AppendUint32(b, 3), uint32(len(reg))), nameAt("reg"))
	return append(append(b, reg...), structure("} } } end")...)
}
