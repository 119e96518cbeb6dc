package call_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hangs is how long something may take that does not hang.
const hangs = time.Minute

// newArea returns memory for an area, and the same as a window.
func newArea(t testing.TB) ([]byte, *guestmem.Window) {
	t.Helper()
	mem, err := guestmem.MapAnonymous(call.Size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guestmem.Unmap(mem) })
	m, err := guestmem.New(guestmem.Region{Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	area, err := m.Window(0, call.Size)
	if err != nil {
		t.Fatal(err)
	}
	return mem, area
}

// start returns both sides of an area, which run until the test ends.
func start(t *testing.T, cfg call.Config) (*call.Host, *call.Guest) {
	t.Helper()
	_, cfg.Area = newArea(t)
	h, err := call.NewHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.Start()
	t.Cleanup(h.Stop)
	g, err := call.Attach(cfg.Area, h.Wake)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	running.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(time.Millisecond)
			g.Poll()
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return h, g
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	t.Cleanup(cancel)
	return ctx
}

// What the host reads comes to the guest, all of it, in order, to its end; and nothing is read that the guest has not
// asked for.
func TestStdin(t *testing.T) {
	bulk := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	for name, want := range map[string][]byte{"none": {}, "a byte": {'x'}, "bulk": bulk} {
		t.Run(name, func(t *testing.T) {
			var read atomic.Int64
			in := io.TeeReader(iotest.DataErrReader(bytes.NewReader(want)), counter{&read})
			_, g := start(t, call.Config{Stdin: in})
			ctx, buf, got := deadline(t), make([]byte, call.MostBytes), []byte(nil)
			for {
				before := read.Load()
				if before > int64(len(got)) {
					t.Fatalf("%d bytes were read for %d", before, len(got))
				}
				n, err := g.Stdin(ctx, call.CommandSession, buf)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				got = append(got, buf[:n]...)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes came, want %d", len(got), len(want))
			}
		})
	}
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// A stdin that says nothing holds up neither other calls nor the end, and its error is told.
func TestStdinBlocks(t *testing.T) {
	r, w := io.Pipe()
	failed := make(chan error, 1)
	h, g := start(t, call.Config{Stdin: r, OnStdinError: func(err error) { failed <- err }})
	ctx := deadline(t)
	asked := make(chan error, 1)
	go func() {
		n, err := g.Stdin(ctx, call.CommandSession, make([]byte, 10))
		if n != 0 {
			err = errors.New("bytes came")
		}
		asked <- err
	}()
	h.Resize(call.WindowSize{Rows: 7, Cols: 9})
	if size, hungUp, err := g.Winch(ctx, call.CommandSession); err != nil || hungUp || size.Rows != 7 || size.Cols != 9 {
		t.Errorf("%v, %v, %v", size, hungUp, err)
	}
	w.CloseWithError(os.ErrPermission)
	if err := <-asked; err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}

// A Read of stdin that never returns does not hold up the end.
func TestStopWhileStdinBlocks(t *testing.T) {
	r, w := io.Pipe()
	reading := make(chan struct{})
	h, g := start(t, call.Config{Stdin: io.MultiReader(signaller{reading}, r), OnStdinError: func(err error) {
		t.Errorf("after the end: %v", err)
	}})
	ctx, cancel := context.WithCancel(deadline(t))
	asked := make(chan error, 1)
	go func() {
		_, err := g.Stdin(ctx, call.CommandSession, make([]byte, 10))
		asked <- err
	}()
	<-reading
	stopped := make(chan struct{})
	go func() {
		h.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(hangs):
		t.Error("Stop waits")
	}
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.CloseWithError(os.ErrClosed) // its goroutine ends
}

// signaller is nothing to read, and tells when somebody does.
type signaller struct{ reading chan struct{} }

func (s signaller) Read([]byte) (int, error) {
	close(s.reading)
	return 0, io.EOF
}

// serve is a guest that runs sessions which do with a line what answer does.
func serve(ctx context.Context, g *call.Guest, answer func(line string) (out string, end bool)) {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		n, p, err := g.Next(ctx)
		if err != nil {
			return
		}
		running.Go(func() {
			_ = g.Output(ctx, n, []byte(strings.Join(append(p.Args, p.Term, p.Dir), "|")+"\n"))
			buf := make([]byte, call.FewBytes)
			for {
				k, err := g.Stdin(ctx, n, buf)
				if err != nil {
					return
				}
				out, end := answer(string(buf[:k]))
				if k == 0 || end {
					_ = g.Closed(ctx, n, 5)
					return
				}
				_ = g.Output(ctx, n, []byte(out))
			}
		})
	}
}

func TestSessions(t *testing.T) {
	h, g := start(t, call.Config{})
	ctx := deadline(t)
	go serve(ctx, g, func(line string) (string, bool) { return strings.ToUpper(line), line == "exit" })
	var all []*call.Session
	for range call.MaxSessions {
		s, err := h.Open(ctx, call.Program{Args: []string{"sh", "-i"}, Term: "vt100", Dir: "/d", Rows: 3, Cols: 4})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if _, err := h.Open(ctx, call.Program{}); !errors.Is(err, call.ErrSessions) {
		t.Errorf("one too many: %v", err)
	}
	if _, err := h.Open(ctx, call.Program{Dir: strings.Repeat("x", 4<<10)}); !errors.Is(err, call.ErrFormat) {
		t.Errorf("a long one: %v", err)
	}
	for i, s := range all {
		if _, err := s.Write([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
		want := "sh|-i|vt100|/d\nHELLO\n"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
		if i%2 == 0 {
			_ = s.Close() // its input ends
		} else if _, err := s.Write([]byte("exit")); err != nil {
			t.Fatal(err)
		}
		if code, err := s.Wait(ctx); err != nil || code != 5 {
			t.Errorf("code %d, %v", code, err)
		}
		if rest, err := io.ReadAll(s); err != nil || len(rest) > 0 {
			t.Errorf("%q, %v", rest, err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("a closed session takes input: %v", err)
		}
	}
	s, err := h.Open(ctx, call.Program{}) // there is room again
	if err != nil {
		t.Fatal(err)
	}
	h.Stop()
	if _, err := s.Wait(ctx); !errors.Is(err, call.ErrOver) {
		t.Errorf("the end: %v", err)
	}
	if _, err := io.ReadAll(s); err != nil && !errors.Is(err, call.ErrOver) {
		t.Errorf("the end: %v", err)
	}
	if _, err := h.Open(ctx, call.Program{}); !errors.Is(err, call.ErrOver) {
		t.Errorf("after the end: %v", err)
	}
}

// A guest that asks for no sessions has nobody wait for ever; one that takes no input makes its writer wait, and a
// reader that takes no output makes the guest wait.
func TestSessionsOfAGuestThatDoesNothing(t *testing.T) {
	h, g := start(t, call.Config{})
	ctx, cancel := context.WithTimeout(deadline(t), 20*time.Millisecond)
	defer cancel()
	if _, err := h.Open(ctx, call.Program{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	ctx = deadline(t)
	opened := make(chan *call.Session, 1)
	go func() {
		s, err := h.Open(ctx, call.Program{})
		if err != nil {
			t.Error(err)
		}
		opened <- s
	}()
	n, _, err := g.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := <-opened
	wrote := make(chan int, 1)
	go func() {
		n, _ := s.Write(make([]byte, 1<<20))
		wrote <- n
	}()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	taken := 0
	for g.Output(short, n, make([]byte, call.FewBytes)) == nil {
		taken += call.FewBytes
	}
	if taken > 64<<10 {
		t.Errorf("%d bytes of output were taken that nobody reads", taken)
	}
	_ = s.Close()
	if n := <-wrote; n > 64<<10 {
		t.Errorf("%d bytes of input were taken that the guest does not read", n)
	}
	if _, hungUp, err := g.Winch(ctx, n); err != nil || !hungUp {
		t.Errorf("hung up: %v, %v", hungUp, err)
	}
}

// The command's end waits for who wants to have a look.
func TestCommandsEnd(t *testing.T) {
	var looked atomic.Int64 // guest memory is no synchronization that the race detector knows
	_, g := start(t, call.Config{OnEnd: func(_ context.Context, code int) { looked.Store(int64(code)) }})
	if err := g.Closed(deadline(t), call.CommandSession, 3); err != nil || looked.Load() != 3 {
		t.Errorf("%v, %v", err, looked.Load())
	}
	_, g = start(t, call.Config{})
	if err := g.Closed(deadline(t), call.CommandSession, 3); err != nil {
		t.Error(err)
	}
}

// What can't be answered is refused, with a reason.
func TestRefused(t *testing.T) {
	_, g := start(t, call.Config{})
	ctx := deadline(t)
	for name, err := range map[string]error{
		"output of the command":      g.Output(ctx, call.CommandSession, []byte("x")),
		"output of nobody's session": g.Output(ctx, 77, []byte("x")),
		"the end of nobody's":        g.Closed(ctx, 77, 0),
		"a command's exit code":      g.Closed(ctx, call.CommandSession, 256),
		"another's":                  g.Closed(ctx, call.CommandSession, -1),
		"no bytes":                   func() error { _, err := g.Stdin(ctx, 0, nil); return err }(),
	} {
		if !errors.Is(err, call.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n, err := g.Stdin(ctx, 77, make([]byte, 5)); n != 0 || err != nil {
		t.Errorf("stdin of nobody's: %d, %v", n, err)
	}
}

func TestParams(t *testing.T) {
	p := call.Params{Base: 0x5f000000, Size: call.Size}
	if got, err := call.ParseParams("KTSTR_SHM_BASE=0x1 " + p.String() + " KTSTR_CALL_BASE=0x2"); err != nil || got != p {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "KTSTR_CALL_BASE=0x1", "KTSTR_CALL_BASE=0x1 KTSTR_CALL_SIZE=y"} {
		if _, err := call.ParseParams(bad); !errors.Is(err, call.ErrParams) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAttachToNoArea(t *testing.T) {
	_, area := newArea(t)
	if _, err := call.Attach(area, func() {}); !errors.Is(err, call.ErrArea) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := call.NewHost(call.Config{Area: must(area.Sub(0, 4096))}); !errors.Is(err, call.ErrArea) {
		t.Errorf("a small one: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
