// Package monitor watches a ring while its guest runs. Every 10 ms, and when the guest rings its doorbell, it drains
// the ring and passes each message to the handlers of its type. When one of them has seen enough, it tells the code
// that runs the guest.
package monitor

import "github.com/ktstr/ktstr-vmm/pkg/shm"

// Verdict is a handler's decision about a message. The zero value is Continue.
type Verdict struct {
	stop   error
	reject error
	notNow bool
}

// Continue lets the run go on.
var Continue Verdict

// Stop ends the run for the given reason.
func Stop(reason error) Verdict { return Verdict{stop: reason} }

// Reject lets the run go on and counts the message as a bad_payload fault: its CRC is right, but its type does not
// allow its payload.
func Reject(err error) Verdict { return Verdict{reject: err} }

// NotNow leaves the message, and those after it, in the ring: the handler has no room for it. The message comes again
// with the next tick, also to the handlers that have already had it, so a handler that may return NotNow should come
// first. After the guest's end, when the context given to Finish ends, the message is omitted instead.
var NotNow = Verdict{notNow: true}

// Handler handles messages. It runs on the monitor's goroutine and must not block. The message's payload is valid until
// it returns.
type Handler interface {
	// HandleMessage returns what to do with the run, and with the message.
	HandleMessage(shm.Message) Verdict
}

// HandlerFunc lets a function be used as a Handler.
type HandlerFunc func(shm.Message) Verdict

// HandleMessage calls f.
func (f HandlerFunc) HandleMessage(m shm.Message) Verdict { return f(m) }

// Mux passes messages to handlers by type. All handlers must be added before the monitor starts.
type Mux struct {
	byType map[shm.Type][]Handler
	all    []Handler
}

// NewMux returns an empty Mux.
func NewMux() *Mux { return &Mux{byType: map[shm.Type][]Handler{}} }

// Handle adds a handler for CRC-good messages of a type. Several handlers are called in the order in which they were
// added.
func (x *Mux) Handle(t shm.Type, h Handler) { x.byType[t] = append(x.byType[t], h) }

// HandleFunc adds a function as a handler for a type: see Handle.
func (x *Mux) HandleFunc(t shm.Type, f func(shm.Message) Verdict) { x.Handle(t, HandlerFunc(f)) }

// HandleAll adds a handler for every message, including CRC-bad ones. It is called before the handlers of the message's
// type.
func (x *Mux) HandleAll(h Handler) { x.all = append(x.all, h) }

// dispatch gives a message to its handlers, up to one that says NotNow. It is given to all of them where it is
// late, for it will not come again. The first reason to stop and the first rejection count.
func (x *Mux) dispatch(m shm.Message, late bool) (v Verdict) {
	for _, h := range x.all {
		if v.merge(h.HandleMessage(m)); v.notNow && !late {
			return v
		}
	}
	if m.CRCOK {
		for _, h := range x.byType[m.Type] {
			if v.merge(h.HandleMessage(m)); v.notNow && !late {
				return v
			}
		}
	}
	return v
}

func (v *Verdict) merge(w Verdict) {
	v.notNow = v.notNow || w.notNow
	if v.stop == nil {
		v.stop = w.stop
	}
	if v.reject == nil {
		v.reject = w.reject
	}
}
