package introspect

import (
	"errors"
	"fmt"
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
func readLayout(types []byte, e *effort) (l layout, err error) {
	t, err := parseBTF(types, e)
	if err != nil {
		return l, fmt.Errorf("%w: %w", ErrTypes, err)
	}
	rq, okRQ := t.structure("rq")
	task, okTask := t.structure("task_struct")
	if !okRQ || !okTask {
		return l, fmt.Errorf("%w: there is no struct rq, or no task_struct", ErrTypes)
	}
	for _, m := range []struct {
		at       *member
		of       typ
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
		found, ok := t.member(m.of, m.path)
		switch {
		case !ok && m.optional:
			continue
		case !ok:
			return l, fmt.Errorf("%w: %s is in none of its structures", ErrTypes, m.path)
		case found.size != m.size:
			return l, fmt.Errorf("%w: %s has %d bytes, not %d", ErrTypes, m.path, found.size, m.size)
		}
		*m.at = found
	}
	return l, nil
}

// maxTypes is how many types that look right are read in an image.
const maxTypes = 4

// findLayout finds a kernel's types in its image.
func findLayout(image []byte, e *effort) (l layout, err error) {
	err = fmt.Errorf("%w are not in its image", ErrTypes)
	for from, try := 0, 0; try < maxTypes; try++ {
		b, next := findBTF(image, from, e)
		if b == nil {
			break
		}
		if l, err = readLayout(b, e); err == nil {
			return l, nil
		}
		from = next
	}
	return l, err
}
