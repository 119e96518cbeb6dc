// Package monitor watches a ring while its guest runs: every 10 ms, and when the guest rings for it, it drains
// what is there, gives each message to the handlers of its type, and tells whoever runs the guest when one of
// them has seen enough.
package monitor

import "github.com/ktstr/ktstr-vmm/pkg/shm"

// Verdict is what a handler makes of a message. The zero value is Continue.
type Verdict struct {
	stop   error
	reject error
	notNow bool
}

// Continue lets the run go on.
var Continue Verdict

// Stop ends the run for a reason.
func Stop(reason error) Verdict { return Verdict{stop: reason} }

// Reject lets the run go on and counts the message as a bad_payload fault: its CRC is right, but
// its payload is none that its type allows.
func Reject(err error) Verdict { return Verdict{reject: err} }

// NotNow leaves the message in the ring, and those behind it: the handler has no room for it. It comes again
// with the next tick, to the handlers that have had it already too, so who may say this goes first. When the
// guest has ended and Finish's time is over, the message is omitted instead.
var NotNow = Verdict{notNow: true}

// Handler acts on messages. It runs on the monitor's goroutine and must not block; the
// message's payload is valid until it returns.
type Handler interface {
	// HandleMessage says what becomes of the run, and of the message.
	HandleMessage(shm.Message) Verdict
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(shm.Message) Verdict

// HandleMessage calls f.
func (f HandlerFunc) HandleMessage(m shm.Message) Verdict { return f(m) }

// Mux sends messages to handlers by their type. Fill it before the monitor starts.
type Mux struct {
	byType map[shm.Type][]Handler
	all    []Handler
}

// NewMux returns an empty Mux.
func NewMux() *Mux { return &Mux{byType: map[shm.Type][]Handler{}} }

// Handle adds a handler for the CRC-good messages of a type. Several are called in the order
// that they were added.
func (x *Mux) Handle(t shm.Type, h Handler) { x.byType[t] = append(x.byType[t], h) }

// HandleFunc is Handle for a function.
func (x *Mux) HandleFunc(t shm.Type, f func(shm.Message) Verdict) { x.Handle(t, HandlerFunc(f)) }

// HandleAll adds a handler for every message, CRC-bad ones too, before those of its type.
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
