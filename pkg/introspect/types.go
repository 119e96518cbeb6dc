package introspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// ErrTypes means that a kernel says nothing of its types, or they are not those that are needed.
var ErrTypes = errors.New("the kernel's types (CONFIG_DEBUG_INFO_BTF)")

// commSize is TASK_COMM_LEN.
const commSize = 16

// member is where a member of a structure is; it has 4 or 8 bytes, or commSize.
type member struct{ offset, size uint32 }

// layout says where in a kernel's structures is what is read. A kernel without sched_ext lacks the last two.
type layout struct {
	number, online, nrRunning, clock, curr, idle member // of struct rq
	pid, comm, policy                            member // of struct task_struct
	scxFlags, scxNrRunning                       member // of struct rq
}

// readLayout finds the members by their names.
func readLayout(spec *btf.Spec) (l layout, err error) {
	var rq, task *btf.Struct
	if err := spec.TypeByName("rq", &rq); err != nil {
		return l, fmt.Errorf("%w: %w", ErrTypes, err)
	}
	if err := spec.TypeByName("task_struct", &task); err != nil {
		return l, fmt.Errorf("%w: %w", ErrTypes, err)
	}
	for _, m := range []struct {
		at       *member
		of       *btf.Struct
		path     string
		size     uint32
		optional bool
	}{
		{at: &l.number, of: rq, path: "cpu", size: 4},
		{at: &l.online, of: rq, path: "online", size: 4},
		{at: &l.nrRunning, of: rq, path: "nr_running", size: 4},
		{at: &l.clock, of: rq, path: "clock", size: 8},
		{at: &l.curr, of: rq, path: "curr", size: 8},
		{at: &l.idle, of: rq, path: "idle", size: 8},
		{at: &l.pid, of: task, path: "pid", size: 4},
		{at: &l.policy, of: task, path: "policy", size: 4},
		{at: &l.comm, of: task, path: "comm", size: commSize},
		{at: &l.scxFlags, of: rq, path: "scx.flags", size: 4, optional: true},
		{at: &l.scxNrRunning, of: rq, path: "scx.nr_running", size: 4, optional: true},
	} {
		found, ok := findMember(m.of, m.path)
		switch {
		case !ok && m.optional:
			continue
		case !ok:
			return l, fmt.Errorf("%w: struct %s has no %s", ErrTypes, m.of.Name, m.path)
		case found.size != m.size:
			return l, fmt.Errorf("%w: struct %s: %s has %d bytes, not %d", ErrTypes, m.of.Name, m.path, found.size, m.size)
		}
		*m.at = found
	}
	return l, nil
}

// maxNesting bounds how deep members are looked for.
const maxNesting = 8

// findMember returns where a structure has the member that a path like "a.b" names, also in what has no name itself.
func findMember(t btf.Type, path string) (member, bool) {
	name, rest, nested := strings.Cut(path, ".")
	m, at, ok := direct(t, name, maxNesting)
	if !ok {
		return member{}, false
	}
	if nested {
		inner, ok := findMember(btf.UnderlyingType(m.Type), rest)
		inner.offset += at
		return inner, ok
	}
	size, err := btf.Sizeof(m.Type)
	if err != nil || m.BitfieldSize != 0 || size < 0 || size > math.MaxInt32 {
		return member{}, false
	}
	return member{at, uint32(size)}, true
}

// direct returns a member by its name, and its offset in bytes.
func direct(t btf.Type, name string, depth int) (btf.Member, uint32, bool) {
	var members []btf.Member
	switch t := t.(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		if m.Name == name {
			return m, m.Offset.Bytes(), true
		}
		if m.Name == "" && depth > 0 {
			if inner, at, ok := direct(btf.UnderlyingType(m.Type), name, depth-1); ok {
				return inner, m.Offset.Bytes() + at, true
			}
		}
	}
	return btf.Member{}, 0, false
}

// The header of types in an image: linux, include/uapi/linux/btf.h, struct btf_header.
const (
	btfMagic    = "\x9f\xeb\x01" // little-endian, version 1
	btfHeader   = 24
	maxBTF      = 64 << 20
	maxBTFTries = 16
)

// findTypes finds a kernel's types in its image.
func findTypes(image []byte) (l layout, err error) {
	err = fmt.Errorf("%w are not in its image", ErrTypes)
	for range maxBTFTries {
		i := bytes.Index(image, []byte(btfMagic))
		if i < 0 {
			break
		}
		if size := btfSize(image[i:]); size > 0 {
			if l, err = parseTypes(image[i : i+size]); err == nil {
				return l, nil
			}
		}
		image = image[i+1:]
	}
	return l, err
}

// btfSize returns the size of the types that a header is for; 0 if it is no header.
func btfSize(b []byte) int {
	if len(b) < btfHeader || binary.LittleEndian.Uint32(b[4:]) != btfHeader {
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

// parseTypes reads types that a guest may have changed.
func parseTypes(b []byte) (l layout, err error) {
	defer func() {
		if p := recover(); p != nil { // the parser is not ours, and is made for a kernel that is trusted
			err = fmt.Errorf("%w can't be read: %v", ErrTypes, p)
		}
	}()
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(b))
	if err != nil {
		return l, fmt.Errorf("%w: %w", ErrTypes, err)
	}
	return readLayout(spec)
}
