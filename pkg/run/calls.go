package run

import (
	"context"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Calls says what the calls of a guest are answered with.
type Calls struct {
	// Stdin is what the command reads, if the guest's job says so; nil: nothing. It is read when the guest asks. A Read
	// that blocks holds up nothing, but its goroutine is left behind until it returns.
	Stdin io.Reader
	// OnReady is called before the guest runs, with the host's side of its calls; nil: nobody needs it.
	OnReady func(*call.Host)
	// Prompt is called when the command has failed, if the guest's job says so, on a goroutine of its own. The guest
	// ends when it has returned, and until then no deadline passes: a person may be at work. ctx ends when the run does.
	// Nil: nobody is asked.
	Prompt func(ctx context.Context, h *call.Host, code int)
}

// withCalls makes room for the call area behind the ring, and names it to the guest.
func (b *built) withCalls(layout vm.Layout) string {
	b.ring.Size = layout.Reserved.Size - call.Size
	b.area = vm.Span{Base: b.ring.Base + guestmem.Addr(b.ring.Size), Size: call.Size}
	return call.Params{Base: uint64(b.area.Base), Size: b.area.Size}.String() + " "
}

// answerCalls makes the host's side of the call area.
func (b *built) answerCalls(r *run) error {
	area, err := b.machine.Memory().Window(b.area.Base, b.area.Size)
	if err != nil {
		return err
	}
	cfg := call.Config{
		Area: area, Stdin: r.cfg.Calls.Stdin, OnAttached: func() { r.history.enter(PhaseAgent) },
		OnStdinError: func(err error) { r.cfg.Log.Warn("the command's stdin ends early", zap.Error(err)) },
	}
	if r.cfg.Calls.Prompt != nil {
		cfg.OnEnd = r.prompt
	}
	b.calls, err = call.NewHost(cfg)
	return err
}

// ErrNoCalls means that a guest has no call area: the embedded one has none.
var ErrNoCalls = errors.New("this guest can't be asked for a session: it has no call area; one of ktstr-vmm run has")

// Open starts a program in the guest on a terminal of its own, as call.Host.Open does. It fails with ErrNoCalls, with
// ErrOver, or as that does.
func (l *Live) Open(ctx context.Context, p call.Program) (*call.Session, error) {
	if l.run.calls == nil {
		return nil, ErrNoCalls
	}
	s, err := l.run.calls.Open(ctx, p)
	if errors.Is(err, call.ErrOver) {
		return nil, ErrOver
	}
	return s, err
}

// startCalls begins to answer the guest's calls, if there are any.
func (r *run) startCalls() {
	if r.calls == nil {
		return
	}
	if r.cfg.Calls.OnReady != nil {
		r.cfg.Calls.OnReady(r.calls)
	}
	r.calls.Start()
}

func (r *run) stopCalls() {
	if r.calls != nil {
		r.calls.Stop()
	}
}

// prompt lets the user have a look at a guest whose command has failed.
func (r *run) prompt(ctx context.Context, code int) {
	if code == 0 {
		return
	}
	r.hold(ctx, true)
	defer r.hold(ctx, false)
	select {
	case <-r.monitor.Sync(): // what the command said is shown before
	case <-ctx.Done():
	}
	r.cfg.Calls.Prompt(ctx, r.calls, code)
}

// hold suspends the deadlines, or lets them go on.
func (r *run) hold(ctx context.Context, on bool) {
	select {
	case r.holds <- on:
	case <-ctx.Done():
	}
}

// deadlines are a run's timers for its end.
type deadlines struct {
	hard, soft *time.Timer
	hardLeft   time.Duration // when they were suspended
	softLeft   time.Duration // 0: it has passed, or there is none
}

// hold stops the timers, or starts them with what was left.
func (d *deadlines) hold(on bool, cfg Config, since time.Duration) {
	if !on {
		d.hard.Reset(d.hardLeft)
		if d.softLeft > 0 {
			d.soft.Reset(d.softLeft)
		}
		return
	}
	d.hardLeft = max(0, cfg.Timeout-since)
	d.hard.Stop()
	d.softLeft = 0
	if d.soft.Stop() {
		d.softLeft = max(1, d.hardLeft-softGrace(cfg.Timeout, cfg.Grace))
	}
}
