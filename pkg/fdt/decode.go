package fdt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// What reading a tree fails with, for errors.Is.
var (
	ErrFormat = errors.New("not a device tree that can be read")
	ErrNoRing = errors.New("the device tree does not say where the ring is")
)

// Memory is what a tree says of its machine's memory.
type Memory struct {
	RAM        []Range    // the /memory nodes; in a tree of Encode's the ring is a part of it
	Reserved   []Reserved // the nodes of /reserved-memory that have a fixed place
	MemReserve []Range    // the memory reservation block
}

// Reserved is a region of /reserved-memory.
type Reserved struct {
	Name string // the node's
	Range
	NoMap bool
}

// Ring returns where the ring is: the one region whose node has the name that Encode gives it, as in
// shm@5f000000. It fails with ErrNoRing where there is none, or more than one.
func (m Memory) Ring() (Range, error) {
	var rings []Range
	for _, r := range m.Reserved {
		if strings.HasPrefix(r.Name, ringName+"@") {
			rings = append(rings, r.Range)
		}
	}
	if len(rings) != 1 {
		return Range{}, fmt.Errorf("%w: of %d reserved regions, %d are called %s@…", ErrNoRing, len(m.Reserved),
			len(rings), ringName)
	}
	return rings[0], nil
}

// Read is Decode for a file, of which it reads no more than MaxSize bytes. What follows the tree is
// ignored.
func Read(r io.Reader) (Memory, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize))
	if err != nil {
		return Memory{}, fmt.Errorf("reading a device tree: %w", err)
	}
	return Decode(b)
}

// The header, of 32-bit fields: section 5.2.
const (
	headerSize = 40
	magic      = 0xd00dfeed

	offTotalSize   = 4
	offStruct      = 8
	offStrings     = 12
	offMemReserve  = 16
	offVersion     = 20
	offCompatible  = 24
	offStringsSize = 32
	offStructSize  = 36
)

// Tokens of the structure block: section 5.4.1.
const (
	tokenBeginNode = 1
	tokenEndNode   = 2
	tokenProperty  = 3
	tokenNop       = 4
	tokenEnd       = 9
)

// Decode returns what an encoded tree says of memory. It fails with ErrFormat for what breaks the format,
// and for memory that it can't tell for sure. What it returns takes no more than a few times the memory
// that the tree takes.
func Decode(tree []byte) (Memory, error) {
	d, err := newDecoder(tree)
	if err == nil {
		err = d.memReserve()
	}
	if err == nil {
		err = d.nodes()
	}
	if err != nil {
		return Memory{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return d.memory, nil
}

var be = binary.BigEndian

// decoder reads a tree from front to back. Of the nodes it keeps the way down to the current one, as far down
// as memory is described.
type decoder struct {
	reserve []byte // the memory reservation block, and what follows it
	rest    []byte // what is still to be read of the structure block
	strings []byte

	depth  int // how many nodes are open
	rooted bool
	path   [3]openNode // the root, a node below it, a node below that
	memory Memory
}

// openNode is a node of which the end was not read yet.
type openNode struct {
	name     string
	children bool // it had some, so that no property may follow

	addressCells, sizeCells, reg, deviceType, status, ranges, noMap []byte // values; nil: no such property
}

func newDecoder(tree []byte) (*decoder, error) {
	if len(tree) < headerSize {
		return nil, fmt.Errorf("%d bytes, a header takes %d", len(tree), headerSize)
	}
	field := func(off int) uint32 { return be.Uint32(tree[off:]) }
	total := field(offTotalSize)
	switch v, compatible := field(offVersion), field(offCompatible); {
	case field(0) != magic:
		return nil, fmt.Errorf("it begins with 0x%08x, not with 0x%08x", field(0), uint32(magic))
	case v < version || compatible > version:
		return nil, fmt.Errorf("version %d, compatible with %d; known is %d", v, compatible, version)
	case total > MaxSize:
		return nil, fmt.Errorf("%d bytes, it can have at most %d", total, MaxSize)
	case total < headerSize || uint64(total) > uint64(len(tree)):
		return nil, fmt.Errorf("%d bytes by its header, there are %d", total, len(tree))
	}
	tree = tree[:total]
	d := &decoder{}
	var err error
	if d.rest, err = block(tree, "structure", field(offStruct), field(offStructSize), 4); err != nil {
		return nil, err
	}
	if d.strings, err = block(tree, "strings", field(offStrings), field(offStringsSize), 1); err != nil {
		return nil, err
	}
	at := field(offMemReserve)
	d.reserve, err = block(tree, "memory reservation", at, total-min(at, total), 8)
	return d, err
}

// block is a part of a tree.
func block(tree []byte, name string, at, size, align uint32) ([]byte, error) {
	if end := uint64(len(tree)); at < headerSize || at%align != 0 || uint64(at)+uint64(size) > end {
		return nil, fmt.Errorf("%s block of 0x%x bytes at 0x%x; it can be within 0x%x and 0x%x, at multiples of %d",
			name, size, at, headerSize, end, align)
	}
	return tree[at : at+size], nil
}

// memReserve reads the memory reservation block: section 5.3.
func (d *decoder) memReserve() error {
	for ; len(d.reserve) >= 16; d.reserve = d.reserve[16:] {
		r := Range{be.Uint64(d.reserve), be.Uint64(d.reserve[8:])}
		switch {
		case r == Range{}:
			return nil
		case r.Size == 0 || r.End() < r.Start:
			return fmt.Errorf("memory reservation of %s, which is empty or ends beyond the last address", r)
		}
		d.memory.MemReserve = append(d.memory.MemReserve, r)
	}
	return errors.New("the memory reservation block has no end")
}

// nodes reads the structure block: section 5.4.
func (d *decoder) nodes() error {
	for size := len(d.rest); ; {
		at := size - len(d.rest)
		token, err := d.cell()
		if err == nil && token == tokenEnd && d.depth == 0 && d.rooted {
			return nil
		}
		if err == nil {
			err = d.token(token)
		}
		if err != nil {
			return fmt.Errorf("at 0x%x of the structure block: %w", at, err)
		}
	}
}

func (d *decoder) token(token uint32) error {
	switch {
	case token == tokenNop:
		return nil
	case token == tokenBeginNode && (d.depth > 0 || !d.rooted):
		return d.begin()
	case token == tokenProperty && d.depth > 0:
		return d.property()
	case token == tokenEndNode && d.depth > 0:
		return d.end()
	}
	return fmt.Errorf("token 0x%x in %d open nodes", token, d.depth)
}

// cell takes 32 bits off the structure block.
func (d *decoder) cell() (uint32, error) {
	b, err := d.take(4)
	if err != nil {
		return 0, err
	}
	return be.Uint32(b), nil
}

// take takes n bytes off the structure block, and the padding behind them.
func (d *decoder) take(n uint32) ([]byte, error) {
	padded := (uint64(n) + 3) &^ 3
	if padded > uint64(len(d.rest)) {
		return nil, fmt.Errorf("%d bytes of %d: %w", len(d.rest), padded, io.ErrUnexpectedEOF)
	}
	b := d.rest[:n:n]
	d.rest = d.rest[padded:]
	return b, nil
}

// begin enters a node.
func (d *decoder) begin() error {
	end := bytes.IndexByte(d.rest, 0)
	if end < 0 {
		return errors.New("a node's name has no end")
	}
	name, err := d.take(uint32(end) + 1)
	if err != nil {
		return err
	}
	name = name[:end]
	if (len(name) == 0) != (d.depth == 0) || !onlyOf(name, "@") {
		return fmt.Errorf("a node called %q", name)
	}
	if d.depth > 0 && d.depth <= len(d.path) {
		d.path[d.depth-1].children = true
	}
	if d.depth < len(d.path) {
		d.path[d.depth] = openNode{name: string(name)}
	}
	d.depth++
	d.rooted = true
	return nil
}

// onlyOf reports whether a name is of the characters that both nodes' and properties' names may have, and
// of some more: sections 2.2.1 and 2.2.4.1.
func onlyOf(name []byte, more string) bool {
	return !bytes.ContainsFunc(name, func(c rune) bool {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			return false
		}
		return !strings.ContainsRune(",._+-"+more, c)
	})
}

// property reads a property of the current node.
func (d *decoder) property() error {
	size, err := d.cell()
	if err != nil {
		return err
	}
	nameAt, err := d.cell()
	if err != nil {
		return err
	}
	value, err := d.take(size)
	if err != nil {
		return err
	}
	name, err := d.propertyName(nameAt)
	if err != nil || d.depth > len(d.path) {
		return err
	}
	n := &d.path[d.depth-1]
	if n.children {
		return fmt.Errorf("property %q behind the nodes of node %q", name, n.name)
	}
	switch v := n.value(name); {
	case v == nil:
	case *v != nil:
		return fmt.Errorf("property %q for the second time in node %q", name, n.name)
	default:
		*v = value
	}
	return nil
}

// maxPropertyName bounds the search for a name's end. The specification's names have up to 31 bytes.
const maxPropertyName = 255

func (d *decoder) propertyName(at uint32) (string, error) {
	b := d.strings[min(uint64(at), uint64(len(d.strings))):]
	b = b[:min(maxPropertyName+1, len(b))]
	end := bytes.IndexByte(b, 0)
	if end < 1 || !onlyOf(b[:end], "?#") {
		return "", fmt.Errorf("no property's name at 0x%x of the strings block", at)
	}
	return string(b[:end]), nil
}

// value is where a property's value belongs; nil for one that is of no interest.
func (n *openNode) value(name string) *[]byte {
	switch name {
	case "#address-cells":
		return &n.addressCells
	case "#size-cells":
		return &n.sizeCells
	case "reg":
		return &n.reg
	case "device_type":
		return &n.deviceType
	case "status":
		return &n.status
	case "ranges":
		return &n.ranges
	case "no-map":
		return &n.noMap
	}
	return nil
}

// end leaves the current node, and takes what it says of memory as Linux does: drivers/of/fdt.c.
func (d *decoder) end() error {
	d.depth--
	if d.depth == 0 || d.depth >= len(d.path) {
		return nil
	}
	n, parent := &d.path[d.depth], &d.path[d.depth-1]
	var err error
	switch {
	case !n.available():
	case d.depth == 1 && string(n.deviceType) == "memory\x00":
		d.memory.RAM, err = appendRanges(d.memory.RAM, n, parent)
	case d.depth == 2 && parent.name == "reserved-memory" && parent.available() && n.reg != nil:
		err = d.reserved(n, parent)
	}
	if err != nil {
		return fmt.Errorf("node %q: %w", n.name, err)
	}
	return nil
}

// available reports whether a node is in use: section 2.3.4.
func (n *openNode) available() bool {
	return n.status == nil || string(n.status) == "okay\x00" || string(n.status) == "ok\x00"
}

// reserved takes in a node of /reserved-memory: section 3.5.
func (d *decoder) reserved(n, parent *openNode) error {
	if parent.ranges == nil || len(parent.ranges) > 0 {
		return fmt.Errorf("node %q has no empty ranges, so what is in it are no addresses of memory", parent.name)
	}
	ranges, err := appendRanges(nil, n, parent)
	d.memory.Reserved = slices.Grow(d.memory.Reserved, len(ranges))
	for _, r := range ranges {
		d.memory.Reserved = append(d.memory.Reserved, Reserved{Name: n.name, Range: r, NoMap: n.noMap != nil})
	}
	return err
}

// appendRanges appends what a node's reg says: section 2.3.6. Empty ranges are left out.
func appendRanges(to []Range, n, parent *openNode) ([]Range, error) {
	a, err := cellCount(parent.addressCells, 2)
	if err != nil {
		return to, fmt.Errorf("#address-cells of %q: %w", parent.name, err)
	}
	s, err := cellCount(parent.sizeCells, 1)
	if err != nil {
		return to, fmt.Errorf("#size-cells of %q: %w", parent.name, err)
	}
	if len(n.reg)%(a+s) != 0 {
		return to, fmt.Errorf("reg of %d bytes, an address and a size take %d", len(n.reg), a+s)
	}
	to = slices.Grow(to, len(n.reg)/(a+s))
	for b := n.reg; len(b) > 0; b = b[a+s:] {
		r := Range{number(b[:a]), number(b[a : a+s])}
		switch {
		case r.End() < r.Start:
			return to, fmt.Errorf("%s, which ends beyond the last address", r)
		case r.Size > 0:
			to = append(to, r)
		}
	}
	return to, nil
}

// cellCount is how many bytes an address or a size takes: section 2.3.5.
func cellCount(value []byte, otherwise int) (int, error) {
	switch {
	case value == nil:
		return 4 * otherwise, nil
	case len(value) != 4:
		return 0, fmt.Errorf("%d bytes, not 4", len(value))
	case be.Uint32(value) < 1 || be.Uint32(value) > 2:
		return 0, fmt.Errorf("%d, it can be 1 or 2", be.Uint32(value))
	}
	return 4 * int(be.Uint32(value)), nil
}

// number is a value of one cell or two.
func number(b []byte) uint64 {
	if len(b) == 4 {
		return uint64(be.Uint32(b))
	}
	return be.Uint64(b)
}
