package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

const (
	pollPeriod = 50 * time.Millisecond // at which followers look for more
	chunkSize  = 32 << 10              // of what is sent in pieces, in bytes

	// Messages that a run does not keep, of which a follower has not asked for the type: how many more of them it gets
	// at each look, and after a time without any.
	sampleRate = 8
	maxSample  = 64
)

// request is what a client can ask.
type request interface {
	// answer sends the answer but for its last line.
	answer(c *conversation) (*End, error)
}

// requests makes an empty request for each verb.
var requests = map[string]func() request{
	"registers": func() request { return new(registersRequest) },
	"shell":     func() request { return new(shellRequest) },
	"status":    func() request { return new(statusRequest) },
	"tail":      func() request { return new(tailRequest) },
	"console":   func() request { return new(consoleRequest) },
	"ring":      func() request { return new(ringRequest) },
	"metrics":   func() request { return new(metricsRequest) },
	"dump":      func() request { return new(dumpRequest) },
	"stall":     func() request { return new(stallRequest) },
	"signal":    func() request { return new(signalRequest) },
	"stop":      func() request { return new(stopRequest) },
}

// parse reads a client's line. What it does not know is an error: a client that means something by it would be
// misunderstood.
func parse(text []byte) (request, error) {
	var h head
	if err := json.Unmarshal(text, &h); err != nil {
		return nil, wrong("the request is no JSON object of the protocol: %v", err)
	}
	if h.Version != Version {
		return nil, &Error{CodeVersion, fmt.Sprintf("the request's ktstr_vmm_control is %d, this run's is %d", h.Version,
			Version)}
	}
	empty := requests[h.Verb]
	if empty == nil {
		return nil, wrong("%q is no verb: it is one of %s", h.Verb,
			strings.Join(slices.Sorted(maps.Keys(requests)), ", "))
	}
	r := empty()
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, wrong("%s: %v", h.Verb, err)
	}
	return r, nil
}

type statusRequest struct{ head }

func (*statusRequest) answer(c *conversation) (*End, error) {
	s := c.run.Status()
	status := &Status{ID: s.ID, Name: s.Name, Version: c.cfg.Version, PID: os.Getpid(), Kernel: s.Kernel, Arch: s.Arch,
		Accelerator: s.Accelerator, StartedAt: s.StartedAt, Elapsed: s.Elapsed.Seconds(), Timeout: s.Timeout.Seconds(),
		Phase: string(s.Phase), Messages: s.Ring.Messages, Bytes: s.Ring.Bytes, ByType: map[string]uint64{},
		Drops: s.Ring.Drops, CRCErrors: s.Ring.CRCErrors, Faults: s.Ring.FaultCount(), Used: s.Ring.Used,
		Capacity: s.Ring.Capacity, Kept: s.Kept, Omitted: s.Omitted, ConsoleBytes: s.ConsoleBytes}
	for name, n := range s.Ring.ByType {
		if n > 0 {
			status.ByType[name] = n
		}
	}
	if l := s.LastStimulus; l != nil {
		status.LastStimulus = &Stimulus{At: l.At.Seconds(), StimulusEvent: l.StimulusEvent}
	}
	return c.result(0), c.send(line{Status: status})
}

// result is the end of an answer, which has the run's if that is over.
func (c *conversation) result(next uint64) *End {
	end := &End{Next: next}
	if r := c.run.Result(); r != nil {
		end.Result = &Result{Outcome: string(r.Outcome), ExitCode: r.ExitCode, Reason: r.Reason}
	}
	return end
}

type dumpRequest struct{ head }

func (*dumpRequest) answer(c *conversation) (*End, error) {
	return nil, c.run.RequestDump("ktstr-vmm ctl dump asked for it")
}

type stallRequest struct{ head }

func (*stallRequest) answer(c *conversation) (*End, error) { return nil, c.run.RequestStall() }

type signalRequest struct {
	head
	Slot  *int `json:"slot"`
	Value *int `json:"value"`
}

func (r *signalRequest) answer(c *conversation) (*End, error) {
	switch {
	case r.Slot == nil || r.Value == nil:
		return nil, wrong("signal: it has a slot and a value")
	case *r.Slot != int(shm.SlotHost) && *r.Slot != int(shm.SlotGuest):
		return nil, wrong("signal: the slot %d is neither %d nor %d", *r.Slot, shm.SlotHost, shm.SlotGuest)
	case *r.Value < 0 || *r.Value > math.MaxUint8:
		return nil, wrong("signal: the value %d is not in 0 to %d", *r.Value, math.MaxUint8)
	}
	return nil, c.run.Signal(shm.Slot(*r.Slot), byte(*r.Value))
}

type stopRequest struct {
	head
	Now bool `json:"now,omitempty"`
}

func (r *stopRequest) answer(c *conversation) (*End, error) { return nil, c.run.Stop(r.Now) }

type metricsRequest struct{ head }

func (*metricsRequest) answer(c *conversation) (*End, error) {
	if c.cfg.Metrics == nil {
		return nil, errors.New("the run has no metrics")
	}
	families, err := c.cfg.Metrics.Gather()
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			return nil, err
		}
	}
	return nil, c.send(line{Text: text.String()})
}

type ringRequest struct{ head }

// answer leaves out pieces of zeros, as most of a ring is that its guest has not filled.
func (*ringRequest) answer(c *conversation) (*End, error) {
	size := c.run.RingSize()
	if err := c.send(line{Size: &size}); err != nil {
		return nil, err
	}
	piece, zeros := make([]byte, chunkSize), make([]byte, chunkSize)
	for at := uint64(0); at < size; {
		n, err := c.run.ReadRing(piece, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("the ring ends at %d, not at %d", at, size)
		}
		if !bytes.Equal(piece[:n], zeros[:n]) {
			if err := c.send(line{At: &at, Data: piece[:n]}); err != nil {
				return nil, err
			}
		}
		at += uint64(n)
	}
	return nil, nil
}

type consoleRequest struct {
	head
	From   uint64 `json:"from,omitempty"`
	Follow bool   `json:"follow,omitempty"`
}

func (r *consoleRequest) answer(c *conversation) (*End, error) {
	next := r.From
	err := c.follow(r.Follow, func() error {
		text, at := c.run.Console(next)
		for len(text) > 0 {
			n := min(len(text), chunkSize)
			if err := c.send(line{At: &at, Data: text[:n]}); err != nil {
				return err
			}
			text, at = text[n:], at+uint64(n)
			next = at
		}
		return nil
	})
	return c.result(next), err
}

type tailRequest struct {
	head
	TailOptions
}

func (r *tailRequest) answer(c *conversation) (*End, error) {
	types, bulk, err := r.types()
	if err != nil {
		return nil, err
	}
	t := &tail{conversation: c, types: types, next: min(r.From, math.MaxInt32)} // a run keeps less
	if r.Follow && bulk {
		err = t.follow()
	} else {
		err = c.follow(r.Follow, t.kept)
	}
	return c.result(t.next), err
}

// tail sends messages.
type tail struct {
	*conversation
	types map[shm.Type]bool // nil: all, but of what a run does not keep only as much as people can read
	next  uint64            // the number of the message behind those that were sent
	room  int               // for messages that the run does not keep
}

// kept sends what the run keeps so far.
func (t *tail) kept() error {
	for {
		ms := t.run.Messages(int(t.next))
		if len(ms) == 0 {
			return nil
		}
		if err := t.messages(ms); err != nil {
			return err
		}
	}
}

// follow sends that and all that comes.
func (t *tail) follow() error {
	follower := t.run.Follow(int(t.next), slices.Collect(maps.Keys(t.types))...)
	defer follower.Close()
	return t.conversation.follow(true, func() error {
		t.room = min(t.room+sampleRate, maxSample)
		for {
			ms, omitted := follower.Next()
			if t.types == nil {
				var more uint64
				ms, more = t.sample(ms)
				omitted += more
			}
			if err := t.messages(ms); err != nil {
				return err
			}
			if omitted > 0 {
				if err := t.send(line{Omitted: omitted}); err != nil {
					return err
				}
			}
			if len(ms) == 0 {
				return nil
			}
		}
	})
}

// sample leaves out what there is no room for of the messages that the run does not keep.
func (t *tail) sample(ms []run.Message) (taken []run.Message, omitted uint64) {
	taken = slices.DeleteFunc(ms, func(m run.Message) bool {
		if m.N >= 0 {
			return false
		}
		t.room--
		return t.room < 0
	})
	t.room = max(t.room, 0)
	return taken, uint64(len(ms) - len(taken))
}

func (t *tail) messages(ms []run.Message) error {
	for _, m := range ms {
		if m.N >= 0 {
			t.next = uint64(m.N) + 1
		}
		if t.types != nil && !t.types[m.Type] {
			continue
		}
		if err := t.send(line{Message: newMessage(m)}); err != nil {
			return err
		}
	}
	return nil
}

// types are the ones that are asked for, nil for all, and whether there are any that the run does not keep.
func (r *tailRequest) types() (types map[shm.Type]bool, bulk bool, err error) {
	if len(r.Types) == 0 {
		return nil, true, nil
	}
	types = map[shm.Type]bool{}
	for _, name := range r.Types {
		t, err := shm.ParseType(name)
		if err != nil {
			return nil, false, wrong("tail: %v", err)
		}
		if !run.Keeps(t) && !r.Follow {
			return nil, false, wrong("tail: a run does not keep messages of the type %v: follow it", t)
		}
		types[t] = true
		bulk = bulk || !run.Keeps(t)
	}
	return types, bulk, nil
}

func newMessage(m run.Message) *Message {
	return &Message{Seq: m.N, At: m.At.Seconds(), Type: m.Type.String(), TypeID: uint32(m.Type), CRCOK: m.CRCOK,
		Size: m.Size, Payload: m.Payload}
}

// follow sends what there is, and if wanted what comes, until the run is over, the client is gone or the server closes.
func (c *conversation) follow(wanted bool, send func() error) error {
	ticks := time.NewTicker(pollPeriod)
	defer ticks.Stop()
	for {
		over := !wanted
		select {
		case <-c.run.Done(): // nothing comes behind what is there now
			over = true
		default:
		}
		err := send()
		if err == nil && !over {
			err = c.out.Flush()
		}
		if err != nil || over {
			return err
		}
		select {
		case <-ticks.C:
		case <-c.run.Done():
		case <-c.closing.Done():
			select {
			case <-c.run.Done():
			default:
				return ErrOver // it never came to run
			}
		}
		if hungUp(c.conn) {
			return net.ErrClosed
		}
	}
}
