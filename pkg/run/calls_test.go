package run_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// newCaller returns a fake with a call area behind its ring, and the configuration of its run. The guest has its side
// of the area, by which it calls until ctx ends.
func newCaller(t *testing.T, guest func(ctx context.Context, g *call.Guest, w *shm.Writer)) (*fake, run.Config) {
	t.Helper()
	var f *fake
	f = newFakeOf(t, fakeRing+call.Size, func(w *shm.Writer, stopped <-chan struct{}) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			<-stopped
			cancel()
		}()
		area, err := f.ring.Sub(fakeRing, call.Size)
		if err != nil {
			t.Error(err)
			return
		}
		g, err := call.Attach(area, func() {})
		if err != nil {
			t.Error(err)
			return
		}
		go g.Run(ctx)
		go func() {
			for ctx.Err() == nil {
				time.Sleep(time.Millisecond)
				g.Poll()
			}
		}()
		guest(ctx, g, w)
	})
	cfg := f.config()
	cfg.VM.Reserved = fakeRing
	return f, cfg
}

// A guest's calls are answered, and the host hears that it is up; the area is behind the ring, and no part of it.
func TestCalls(t *testing.T) {
	var stdin []byte
	f, cfg := newCaller(t, func(ctx context.Context, g *call.Guest, w *shm.Writer) {
		buf := make([]byte, 100)
		n, err := g.Stdin(ctx, call.CommandSession, buf)
		stdin = buf[:n]
		if err == nil {
			number, p, _ := g.Next(ctx)
			_ = g.Output(ctx, number, []byte(strings.Join(p.Args, " ")))
			_ = g.Closed(ctx, number, 4)
		}
		<-ctx.Done()
		_ = w.Write(shm.Exit, make([]byte, 4))
	})
	cfg.Calls = &run.Calls{Stdin: strings.NewReader("input")}
	over := make(chan error, 1)
	cfg.OnLive = func(l *run.Live) {
		go func() {
			s, err := l.Open(t.Context(), call.Program{Args: []string{"a", "shell"}})
			if err == nil {
				var text []byte
				if text, err = io.ReadAll(s); string(text) != "a shell" {
					t.Errorf("%q", text)
				}
			}
			over <- errors.Join(err, l.Stop(true))
			<-l.Done()
			_, err = l.Open(t.Context(), call.Program{})
			over <- err
		}()
	}
	r := ended(t, t.Context(), cfg, run.Interrupted)
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := <-over; !errors.Is(err, run.ErrOver) {
		t.Errorf("after the end: %v", err)
	}
	<-f.Done()
	if string(stdin) != "input" || r.RingSize != fakeRing || len(r.Phases) < 2 || r.Phases[1].Phase != run.PhaseAgent {
		t.Errorf("stdin %q, a ring of %d bytes, phases %+v", stdin, r.RingSize, r.Phases)
	}
	if base := guestmem.Addr(fakeMemory - fakeRing - call.Size); r.RingBase != base {
		t.Errorf("the ring is at %v, want %v", r.RingBase, base)
	}
}

func TestNoCalls(t *testing.T) {
	cfg := newFake(t, func(*shm.Writer, <-chan struct{}) {}).config()
	opened := make(chan error, 1)
	cfg.OnLive = func(l *run.Live) {
		_, err := l.Open(t.Context(), call.Program{})
		opened <- err
	}
	ended(t, t.Context(), cfg, run.NoVerdict)
	if err := <-opened; !errors.Is(err, run.ErrNoCalls) {
		t.Error(err)
	}
}

// While somebody is at a prompt no deadline passes, and afterwards it goes on.
func TestPromptHoldsDeadlines(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		exits   bool
		outcome run.Outcome
	}{"ends": {true, run.Exited}, "hangs": {false, run.TimedOut}} {
		t.Run(name, func(t *testing.T) {
			_, cfg := newCaller(t, func(ctx context.Context, g *call.Guest, w *shm.Writer) {
				_ = g.Closed(ctx, call.CommandSession, 3)
				if tc.exits {
					code := shm.EncodeCode(3)
					_ = w.Write(shm.Exit, code[:])
				}
				<-ctx.Done()
			})
			cfg.Timeout, cfg.Grace = time.Second, 100*time.Millisecond
			cfg.Calls = &run.Calls{Prompt: func(ctx context.Context, _ *call.Host, code int) {
				select {
				case <-ctx.Done():
					t.Error("the run ended meanwhile")
				case <-time.After(1500 * time.Millisecond):
				}
				if code != 3 {
					t.Errorf("code %d", code)
				}
			}}
			ended(t, t.Context(), cfg, tc.outcome)
		})
	}
}

// Who is at a prompt holds up no signal.
func TestPromptAndSignal(t *testing.T) {
	_, cfg := newCaller(t, func(ctx context.Context, g *call.Guest, _ *shm.Writer) {
		_ = g.Closed(ctx, call.CommandSession, 3)
		<-ctx.Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Calls = &run.Calls{Prompt: func(ctx context.Context, _ *call.Host, _ int) {
		cancel()
		<-ctx.Done()
	}}
	ended(t, ctx, cfg, run.Interrupted)
}
