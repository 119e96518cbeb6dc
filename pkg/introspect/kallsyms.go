package introspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// A kernel's own symbol table: linux, scripts/kallsyms.c writes it, kernel/kallsyms.c reads it. Names are sequences of
// tokens, of which there are 256. Before Linux 6.4 the parts lie in the order
//
//	offsets, relative base, number of symbols, names, markers, (sequences,) token table, token index
//
// and since then the first two, and the sequences, follow the last. Each part is aligned to 8 bytes.
const (
	tokenCount   = 256
	markerStride = 256     // there is a marker for each so many names: its offset
	maxSymbols   = 1 << 20 // those of distributions have 200,000
	maxNameSize  = 0x3fff  // a name's length in tokens is one byte, or two that carry 7 bits each
	maxName      = 512     // bytes of a name that is kept: KSYM_NAME_LEN
	maxTries     = 256     // places where a table may be
	tableAlign   = 8
)

// errKallsyms means that an image has no such table, or one of another layout.
var errKallsyms = errors.New("no symbol table (CONFIG_KALLSYMS) of a known layout")

// digits is what the tokens of the digits look like in the token table: they are never combined with others' names.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

// kallsyms is a symbol table in an image of a kernel, whose bytes are checked as they are used.
type kallsyms struct {
	image   []byte
	tokens  [tokenCount]string
	names   int // where the names begin
	count   int // of symbols
	offsets int // where the offsets begin
	base    uint64
	effort  *effort
}

// lookup returns the addresses of those of the wanted symbols that an image of a kernel names, as it was linked, and
// its functions' symbols. It fails with errKallsyms.
func lookup(image []byte, wanted []string, e *effort) (map[string]uint64, Symbols, error) {
	k := kallsyms{image: image, effort: e}
	for from, try := 0, 0; try < maxTries && e.spend(); try++ {
		i := bytes.Index(image[from:], digits)
		if i < 0 {
			break
		}
		if start, end, ok := k.findTokens(from + i); ok && k.findNames(start) && k.findOffsets(end) {
			return k.find(wanted)
		}
		from += i + 1
	}
	return nil, Symbols{}, errKallsyms
}

func align(at int) int { return (at + tableAlign - 1) &^ (tableAlign - 1) }

// findTokens reads the token table in which the digits' tokens are at a place, and returns where it begins and where
// its index ends.
func (k *kallsyms) findTokens(zero int) (start, end int, ok bool) {
	at := zero
	for range tokenCount - '0' {
		n := bytes.IndexByte(k.image[at:min(at+maxName, len(k.image))], 0)
		if n < 0 {
			return 0, 0, false
		}
		at += n + 1
	}
	index := align(at)
	if len(k.image)-index < 2*tokenCount {
		return 0, 0, false
	}
	start = zero - int(binary.LittleEndian.Uint16(k.image[index+2*'0':]))
	if start < 0 {
		return 0, 0, false
	}
	for t, next := 0, start; t < tokenCount; t++ {
		if next != start+int(binary.LittleEndian.Uint16(k.image[index+2*t:])) {
			return 0, 0, false
		}
		n := bytes.IndexByte(k.image[next:at], 0)
		if n < 0 || n > maxName {
			return 0, 0, false
		}
		k.tokens[t] = string(k.image[next : next+n])
		next += n + 1
	}
	return start, index + 2*tokenCount, true
}

// findNames finds the markers, and the names, which end where the markers begin. The markers end where the token table
// begins or, in Linux 6.2 and 6.3 and where that was put into older ones, before a table of 3 bytes for each symbol.
func (k *kallsyms) findNames(tokens int) bool {
	for table := 0; table <= min(3*maxSymbols, tokens) && k.effort.spend(); table += tableAlign {
		end := tokens - table
		for padding := 0; padding < tableAlign; padding += 4 {
			first, last, markers := k.findMarkers(end-padding, table)
			if markers > 0 && k.findFirstName(first, last, markers) {
				return true
			}
		}
	}
	return false
}

// findFirstName finds the first name by the number of symbols before it. Behind the last marker are markerStride names
// at most.
func (k *kallsyms) findFirstName(first, last, markers int) bool {
	for names := (first - last) &^ (tableAlign - 1); names >= tableAlign; names -= tableAlign {
		if first-last-names > markerStride*maxName || !k.effort.spend() {
			return false
		}
		count := int(binary.LittleEndian.Uint32(k.image[names-tableAlign:]))
		if count > maxSymbols || markersFor(count) != markers {
			continue
		}
		if k.names, k.count = names, count; k.namesFit(first) {
			return true
		}
	}
	return false
}

func markersFor(symbols int) int { return (symbols + markerStride - 1) / markerStride }

// findMarkers returns where the markers begin that end at a place, the last of them, and how many there are: they
// ascend from 0, and are as many as a table of some size behind them is for.
func (k *kallsyms) findMarkers(end, table int) (first, last, count int) {
	least, most := 1, maxSymbols/markerStride
	if table > 0 {
		least, most = markersFor(max(1, (table-tableAlign)/3)), markersFor(table/3)
		if !k.zero(end-4*least) && !k.zero(end-4*most) {
			return 0, 0, 0
		}
	}
	if end < 4 {
		return 0, 0, 0
	}
	last = int(binary.LittleEndian.Uint32(k.image[end-4:]))
	for at, above := end-4, last+1; at >= 0 && count < most && k.effort.spend(); at -= 4 {
		marker := int(binary.LittleEndian.Uint32(k.image[at:]))
		if marker >= above {
			break
		}
		above = marker
		if count++; marker == 0 && count >= least {
			return at, last, count
		}
	}
	return 0, 0, 0
}

func (k *kallsyms) zero(at int) bool {
	return at >= 0 && binary.LittleEndian.Uint32(k.image[at:]) == 0
}

// namesFit reports whether the names end where the markers begin, and are where each marker says.
func (k *kallsyms) namesFit(markers int) bool {
	at := k.names
	for i := range k.count {
		if !k.effort.spend() {
			return false
		}
		if i%markerStride == 0 && at-k.names != int(binary.LittleEndian.Uint32(k.image[markers+i/markerStride*4:])) {
			return false
		}
		start, n := k.name(at, markers)
		if n == 0 {
			return false
		}
		at = start + n
	}
	return align(at) == markers
}

// name returns where the tokens of the name at a place begin, and how many they are; none if it does not end before
// a limit.
func (k *kallsyms) name(at, limit int) (start, n int) {
	if at >= limit {
		return 0, 0
	}
	n, start = int(k.image[at]), at+1
	if n&0x80 != 0 {
		if start >= limit {
			return 0, 0
		}
		n, start = n&0x7f|int(k.image[start])<<7, start+1
	}
	if n > maxNameSize || n > limit-start {
		return 0, 0
	}
	return start, n
}

// findOffsets finds the offsets and their base, before the names or behind the token index, which ends at a place.
func (k *kallsyms) findOffsets(end int) bool {
	size := align(4 * k.count)
	baseBefore := k.names - 2*tableAlign
	if at := baseBefore - size; at >= 0 {
		if k.offsets, k.base = at, binary.LittleEndian.Uint64(k.image[baseBefore:]); k.offsetsFit() {
			return true
		}
	}
	at := align(end)
	if size+tableAlign > len(k.image)-at {
		return false
	}
	k.offsets, k.base = at, binary.LittleEndian.Uint64(k.image[at+size:])
	return k.offsetsFit()
}

// offsetsFit reports whether base and offsets look like what they are. The base is 0 in a kernel that has yet to
// relocate itself, for arm64; addresses are then from the kernel's start on. The addresses ascend.
func (k *kallsyms) offsetsFit() bool {
	if k.base != 0 && k.base < kernelHalf {
		return false
	}
	for i := 1; i < k.count; i++ {
		if k.address(i) < k.address(i-1) {
			return false
		}
	}
	return k.address(k.count-1) > k.address(0) // else all of it is 0
}

// address returns the address of a symbol. In a kernel with CONFIG_KALLSYMS_ABSOLUTE_PERCPU an offset that is not
// negative is an address itself: a per-CPU variable's. No other kernel for x86_64 or arm64 is so large that it has a
// negative one.
func (k *kallsyms) address(i int) uint64 {
	offset := binary.LittleEndian.Uint32(k.image[k.offsets+4*i:])
	switch {
	case int32(offset) < 0:
		return k.base - 1 - uint64(int64(int32(offset)))
	case k.absolute():
		return uint64(offset)
	}
	return k.base + uint64(offset)
}

// absolute reports whether the kernel has CONFIG_KALLSYMS_ABSOLUTE_PERCPU: then the last symbol, as nearly all, has a
// negative offset.
func (k *kallsyms) absolute() bool {
	last := binary.LittleEndian.Uint32(k.image[k.offsets+4*(k.count-1):])
	return int32(last) < 0
}

// find returns the addresses of those of the wanted symbols that there are, of each the first, and the symbols of
// functions.
func (k *kallsyms) find(wanted []string) (map[string]uint64, Symbols, error) {
	var code Symbols
	found := map[string]uint64{}
	at, limit := k.names, len(k.image)
	name := make([]byte, 0, maxName)
	for i := range k.count {
		start, n := k.name(at, limit)
		if n == 0 || !k.effort.spend() {
			return nil, Symbols{}, fmt.Errorf("%w: its name %d is cut short", errKallsyms, i)
		}
		at = start + n
		name = name[:0]
		for _, t := range k.image[start:at] {
			if name = append(name, k.tokens[t]...); len(name) > maxName {
				break
			}
		}
		if len(name) < 2 { // the first letter is the symbol's type
			continue
		}
		if isCode(name[0]) {
			code.add(k.address(i), name[1:])
		}
		for _, w := range wanted {
			if string(name[1:]) == w {
				if _, again := found[w]; !again {
					found[strings.Clone(w)] = k.address(i)
				}
			}
		}
	}
	return found, code, nil
}
