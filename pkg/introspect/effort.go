package introspect

import "context"

// maxEffort is how many places, names, types and members are looked at in all, until what is looked for in a guest's
// memory is found or given up: about a second's worth. A kernel of a distribution takes a twentieth.
const maxEffort = 16 << 20

// effort bounds what a guest's memory can make the host do.
type effort struct {
	ctx  context.Context
	left int
}

func newEffort(ctx context.Context) *effort { return &effort{ctx, maxEffort} }

// spend counts one more step, and reports whether it may be taken.
func (e *effort) spend() bool {
	const between = 1 << 12 // looks at the context
	if e.left--; e.left%between == 0 && e.ctx.Err() != nil {
		e.left = 0
	}
	return e.left > 0
}
