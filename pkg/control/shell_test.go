package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// withSessions gives a run's guest an agent, which serves each session by a function. Its error is not the host's.
func withSessions(t *testing.T, session func(ctx context.Context, g *call.Guest, number uint32, p call.Program)) (
	guest func(context.Context, *shm.Writer), change func(*run.Config)) {
	areas := make(chan *guestmem.Window, 1)
	guest = func(ctx context.Context, _ *shm.Writer) {
		g, err := call.Attach(<-areas, func() {})
		if err != nil {
			t.Error(err)
			return
		}
		go g.Run(ctx)
		go func() {
			for {
				number, p, err := g.Next(ctx)
				if err != nil {
					return
				}
				go session(ctx, g, number, p)
			}
		}()
		for ctx.Err() == nil {
			time.Sleep(time.Millisecond)
			g.Poll()
		}
	}
	return guest, func(cfg *run.Config) {
		cfg.Calls = &run.Calls{}
		newMachine := cfg.NewMachine
		cfg.NewMachine = func(cfg vm.Config) (run.Machine, error) {
			m, err := newMachine(cfg)
			if err != nil {
				return nil, err
			}
			fake := m.(*machine)
			size := fake.ring.Len() - call.Size
			area, err := fake.ring.Sub(size, call.Size)
			if err != nil {
				return nil, err
			}
			areas <- area
			fake.ring, err = fake.ring.Sub(0, size)
			return fake, err
		}
	}
}

// echo is a session that says what was typed and how large its window is, and ends with 7 at the end of what is typed.
func echo(ctx context.Context, g *call.Guest, number uint32, p call.Program) {
	say := func(format string, args ...any) { _ = g.Output(ctx, number, fmt.Appendf(nil, format, args...)) }
	say("%v %s %dx%d\n", p.Args, p.Term, p.Rows, p.Cols)
	go func() {
		for {
			size, hungUp, err := g.Winch(ctx, number)
			if err != nil || hungUp {
				return
			}
			say("now %dx%d\n", size.Rows, size.Cols)
		}
	}()
	buf := make([]byte, call.FewBytes)
	for {
		n, err := g.Stdin(ctx, number, buf)
		if err != nil {
			return
		}
		if n == 0 || buf[n-1] == 4 {
			_ = g.Closed(ctx, number, 7)
			return
		}
		say("%s", buf[:n])
	}
}

func wantShown(t *testing.T, s io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// A session goes both ways, byte for byte, and ends with its exit code.
func TestShell(t *testing.T) {
	guest, change := withSessions(t, echo)
	c := serve(t, guest, change)
	s, err := c.Shell(t.Context(), call.Program{Args: []string{"a", "b"}, Term: "vt100", Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	wantShown(t, s, "[a b] vt100 24x80\n")
	if err := s.Resize(50, 132); err != nil {
		t.Error(err)
	}
	wantShown(t, s, "now 50x132\n")
	text := strings.Repeat("0123456789abcde\n", 20000)
	go func() { _, _ = io.WriteString(s, text) }()
	wantShown(t, s, text)
	if _, err := s.Write([]byte{4}); err != nil {
		t.Error(err)
	}
	if code, err := s.Wait(); code != 7 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
}

// Who is gone, sends what is no frame, or does not read, is hung up.
func TestShellHangsUp(t *testing.T) {
	t.Parallel() // it waits
	for name, do := range map[string]func(t *testing.T, conn *net.UnixConn){
		"gone": func(_ *testing.T, conn *net.UnixConn) { _ = conn.Close() },
		"gone, with more typed than is taken": func(_ *testing.T, conn *net.UnixConn) {
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			frame := `{"data":"` + strings.Repeat("AAAA", 900) + `"}` + "\n"
			_, _ = io.WriteString(conn, strings.Repeat(frame, 1000))
			_ = conn.Close()
		},
		"finished": func(t *testing.T, conn *net.UnixConn) {
			_ = conn.CloseWrite()
			if all, err := io.ReadAll(conn); err != nil || !strings.Contains(string(all), `{"end":{`) {
				t.Errorf("%.200s, %v", all, err)
			}
		},
		"garbage": func(t *testing.T, conn *net.UnixConn) {
			_, _ = io.WriteString(conn, `{"resize":1}`+"\n")
			if all, err := io.ReadAll(conn); err != nil || !strings.Contains(string(all), `"code":"request"`) {
				t.Errorf("%.200s, %v", all, err)
			}
		},
		"two on a line": func(t *testing.T, conn *net.UnixConn) {
			_, _ = io.WriteString(conn, `{"data":"YQ=="}{"data":"Yg=="}`+"\n")
			if all, err := io.ReadAll(conn); err != nil || !strings.Contains(string(all), "more than one frame") {
				t.Errorf("%.200s, %v", all, err)
			}
		},
		"a long line": func(t *testing.T, conn *net.UnixConn) {
			_, _ = io.WriteString(conn, strings.Repeat(" ", control.MaxRequest))
			if all, err := io.ReadAll(conn); err != nil || !strings.Contains(string(all), "more than 4096 bytes") {
				t.Errorf("%.200s, %v", all, err)
			}
		},
		"stuck": func(*testing.T, *net.UnixConn) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hungUp := make(chan struct{})
			guest, change := withSessions(t, func(ctx context.Context, g *call.Guest, number uint32, _ call.Program) {
				go func() {
					for name == "stuck" && g.Output(ctx, number, make([]byte, call.FewBytes)) == nil {
					}
				}()
				for {
					if _, up, err := g.Winch(ctx, number); err != nil {
						return
					} else if up {
						break
					}
				}
				close(hungUp)
				_ = g.Closed(ctx, number, 129)
			})
			c := serve(t, guest, change)
			conn := dial(t, c)
			_, _ = io.WriteString(conn, `{"ktstr_vmm_control":1,"verb":"shell"}`+"\n")
			opened := make([]byte, len(`{"ktstr_vmm_control":1,"opened":true}`))
			if _, err := io.ReadFull(conn, opened); err != nil || !strings.Contains(string(opened), "opened") {
				t.Fatalf("%s, %v", opened, err)
			}
			do(t, conn)
			select {
			case <-hungUp:
			case <-time.After(hangLimit):
				t.Error("it is not hung up")
			}
		})
	}
}

// A run that ends says so in its sessions; more sessions than it has are an error at once.
func TestShellsOfARunThatEnds(t *testing.T) {
	guest, change := withSessions(t, echo)
	path := filepath.Join(folder(t), "run.sock")
	end, err := start(path, guest, change)
	if err != nil {
		t.Fatal(err)
	}
	c := control.Client{Path: path}
	var shells []*control.Shell
	for range call.MaxSessions {
		s, err := c.Shell(t.Context(), call.Program{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		shells = append(shells, s)
	}
	if _, err := c.Shell(t.Context(), call.Program{}); !errors.Is(err, control.ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	if err := c.Stop(t.Context(), true); err != nil {
		t.Error(err)
	}
	for _, s := range shells {
		if code, err := s.Wait(); !errors.Is(err, control.ErrOver) || !strings.Contains(err.Error(), "interrupted: ") {
			t.Errorf("%d, %v", code, err)
		}
	}
	if _, err := end(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who is slow gets, when the run is over and its server closes, all the same what the session has shown, and how the
// run ended.
func TestShellsOfARunThatHasEnded(t *testing.T) {
	var shown [call.MaxSessions]atomic.Int64
	guest, change := withSessions(t, func(ctx context.Context, g *call.Guest, number uint32, p call.Program) {
		i, _ := strconv.Atoi(p.Args[0])
		for g.Output(ctx, number, make([]byte, call.FewBytes)) == nil {
			shown[i].Add(call.FewBytes)
		}
	})
	c := control.Client{Path: filepath.Join(folder(t), "run.sock")}
	end, err := start(c.Path, guest, change)
	if err != nil {
		t.Fatal(err)
	}
	var shells []*control.Shell
	for i := range shown {
		s, err := c.Shell(t.Context(), call.Program{Args: []string{strconv.Itoa(i)}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		shells = append(shells, s)
	}
	until(t, "the shells show too little", func() bool {
		least := int64(math.MaxInt64)
		for i := range shown {
			least = min(least, shown[i].Load())
		}
		return least > 128<<10 // more than a session keeps: its client's connection is full
	})
	if err := c.Stop(t.Context(), true); err != nil {
		t.Error(err)
	}
	closed := make(chan error, 1)
	go func() {
		_, err := end(t.Context())
		closed <- err
	}()
	until(t, "the server does not close", func() bool {
		_, err := c.Status(t.Context())
		return errors.Is(err, control.ErrNotRunning)
	})
	for i, s := range shells {
		n, err := io.Copy(io.Discard, s)
		if want := shown[i].Load(); err != nil || n < want {
			t.Errorf("%d bytes of %d, %v", n, want, err)
		}
		if _, err := s.Wait(); !errors.Is(err, control.ErrOver) || !strings.Contains(err.Error(), "interrupted: ") {
			t.Error(err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// Who takes a request for a session and says nothing is waited for no longer than a limit.
func TestSilentShell(t *testing.T) {
	t.Parallel() // it waits
	ctx, cancel := context.WithTimeout(t.Context(), hangLimit)
	defer cancel()
	_, err := says(t, "", false).Shell(ctx, call.Program{})
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}

// An exit code that no shell has would become another one, 256 that of success, where a process exits with it.
func TestShellExitCodes(t *testing.T) {
	for code, want := range map[int]error{0: nil, 255: nil, 256: control.ErrProtocol, -1: control.ErrProtocol,
		math.MaxInt: control.ErrProtocol} {
		text := fmt.Sprintf(`{"ktstr_vmm_control":1,"opened":true}`+"\n"+`{"end":{"exit_code":%d}}`+"\n", code)
		s, err := says(t, text, true).Shell(t.Context(), call.Program{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		if got, err := s.Wait(); !errors.Is(err, want) || err == nil && got != code {
			t.Errorf("%d: %d, %v", code, got, err)
		}
	}
}

// A guest that takes on no sessions, or has no way to, is an error that says so.
func TestNoShell(t *testing.T) {
	c := serve(t, idle)
	if _, err := c.Shell(t.Context(), call.Program{}); err == nil || err.Error() != run.ErrNoCalls.Error() {
		t.Error(err)
	}
	guest, change := withSessions(t, echo)
	c = serve(t, guest, change)
	var e *control.Error
	long := call.Program{Args: []string{strings.Repeat("x", 3000)}}
	if _, err := c.Shell(t.Context(), long); !errors.As(err, &e) || e.Code != control.CodeRequest {
		t.Error(err)
	}
}
