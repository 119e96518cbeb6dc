package control_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

func dial(t *testing.T, c control.Client) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", c.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(hangLimit))
	return conn.(*net.UnixConn)
}

// answer sends a text and returns the whole of what is answered.
func answer(t *testing.T, c control.Client, text string) string {
	t.Helper()
	conn := dial(t, c)
	_, _ = io.WriteString(conn, text) // one that is too long is not taken to its end
	_ = conn.CloseWrite()
	all, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return string(all)
}

// What is no request is answered with one line that has a code and says what is wrong.
func TestWrongRequests(t *testing.T) {
	c := serve(t, idle)
	v := func(version int, verb string) string {
		return fmt.Sprintf(`{"ktstr_vmm_control":%d,"verb":%s}`+"\n", version, verb)
	}
	for text, want := range map[string][2]string{
		"":                                      {"request", "no end of line"},
		"\n":                                    {"request", "no JSON object"},
		"\x00":                                  {"request", "no end of line"},
		`{"a":1}`:                               {"request", "no end of line"},
		"[1]\n":                                 {"request", "no JSON object"},
		"{}\n":                                  {"version", "ktstr_vmm_control is 0"},
		v(1, `""`):                              {"request", `\"\" is no verb: it is one of console, `},
		v(1, `"die"`):                           {"request", `\"die\" is no verb`},
		v(2, `"a"`):                             {"version", "is 2, this run's is 1"},
		v(1, `"stop","new":true`):               {"request", `unknown field \"new\"`},
		v(1, `"stop","now":1`):                  {"request", "stop: "},
		v(1, `"signal","slot":0`):               {"request", "a slot and a value"},
		v(1, `"signal","slot":2,"value":1`):     {"request", "the slot 2"},
		v(1, `"signal","slot":0,"value":256`):   {"request", "the value 256"},
		v(1, `"tail","types":["STIM","sti"]`):   {"request", `\"sti\" is no type`},
		v(1, `"tail","types":["RAWO"]`):         {"request", "type RAWO: follow it"},
		v(1, `"tail","from":-1`):                {"request", "tail: "},
		strings.Repeat(" ", control.MaxRequest): {"request", "more than 4096 bytes"},
	} {
		got := answer(t, c, text)
		var last struct {
			Version int            `json:"ktstr_vmm_control"`
			Error   *control.Error `json:"error"`
		}
		if err := json.Unmarshal([]byte(got), &last); err != nil || last.Version != 1 || last.Error == nil ||
			string(last.Error.Code) != want[0] || !strings.Contains(got, want[1]) {
			t.Errorf("%.80q: %v, %s", text, err, got)
		}
	}
	if s, err := c.Status(t.Context()); err != nil || s.PID != os.Getpid() {
		t.Errorf("%+v, %v", s, err)
	}
}

// Who is silent, or sends a line that never ends, is sent away.
func TestSlowRequests(t *testing.T) {
	t.Parallel() // it waits
	c := serve(t, idle)
	conn := dial(t, c)
	_, _ = io.WriteString(conn, `{"ktstr_vmm_control":1,`)
	if all, err := io.ReadAll(conn); err != nil || !strings.Contains(string(all), "no request came within 5s") {
		t.Errorf("%s, %v", all, err)
	}
}

// More clients than are served get told so at once, and there is room again when others are gone.
func TestManyClients(t *testing.T) {
	c := serve(t, idle)
	ask := `{"ktstr_vmm_control":1,"verb":"tail","follow":true}` + "\n"
	var conns []*net.UnixConn
	for range control.MaxClients {
		conn := dial(t, c)
		if _, err := io.WriteString(conn, ask); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if s, err := c.Status(t.Context()); !errors.Is(err, control.ErrBusy) {
		t.Errorf("%+v, %v", s, err)
	}
	for i, conn := range conns {
		if i%2 == 0 {
			_ = conn.CloseWrite() // it still reads
			continue
		}
		_ = conn.Close()
	}
	until(t, "no room is made", func() bool {
		_, err := c.Status(t.Context())
		return err == nil
	})
	if err := c.Stop(t.Context(), true); err != nil {
		t.Error(err)
	}
	for i := 0; i < len(conns); i += 2 {
		if all, err := io.ReadAll(conns[i]); err != nil || !strings.Contains(string(all), `"exit_code":143`) {
			t.Fatalf("%s, %v", all, err)
		}
	}
}

// steps is a guest that writes so many STIM, as fast as they are read.
func steps(n int) func(context.Context, *shm.Writer) {
	return func(ctx context.Context, ring *shm.Writer) {
		for i := range n {
			p := shm.StimulusEvent{StepIndex: uint16(i), TotalIterations: uint64(i)}.Encode()
			if ring.WriteWait(ctx, shm.Stimulus, p[:]) != nil {
				return
			}
		}
		code := shm.EncodeCode(0)
		_ = ring.Write(shm.Exit, code[:])
	}
}

// Followers of a flood get all that the run keeps, in order, however many they are and whenever they come; and one that
// does not read is no trouble to the others, nor to the run's end.
func TestFollowersMissNothing(t *testing.T) {
	const count, followers = 20000, 4
	c := control.Client{Path: filepath.Join(folder(t), "run.sock")}
	end, err := start(c.Path, steps(count))
	if err != nil {
		t.Fatal(err)
	}
	stuck := dial(t, c)
	_, _ = io.WriteString(stuck, `{"ktstr_vmm_control":1,"verb":"tail","follow":true}`+"\n")
	var all sync.WaitGroup
	for range followers {
		all.Go(func() {
			next := 0
			last, err := c.Tail(t.Context(), control.TailOptions{Follow: true, Types: []string{"stim"}},
				func(m control.Message) error {
					s, err := shm.DecodeStimulus(m.Payload)
					if err != nil || s.TotalIterations != uint64(next) || m.Seq != next || !m.CRCOK {
						return fmt.Errorf("%+v, %v, where %d was to come", m, err, next)
					}
					next++
					return nil
				}, func(n uint64) { t.Errorf("%d missed", n) })
			if err != nil || next != count || last.Result == nil || last.Result.Outcome != "exited" || last.Next != count+1 {
				t.Errorf("%d messages, %+v, %v", next, last, err)
			}
		})
	}
	all.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if r, err := end(ctx); err != nil || len(r.Stimuli) != count {
		t.Errorf("%+v, %v", r, err)
	}
	if took := time.Since(begun); took > hangLimit/2 {
		t.Errorf("the end took %v", took)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// Of what a run does not keep, a follower gets as much as people can read, or, if it asks for the type, more. It is
// told how much it did not get.
func TestFollowingBulk(t *testing.T) {
	const count = 500
	for name, tc := range map[string]struct {
		types []string
		all   bool
	}{"a sample": {nil, false}, "a type": {[]string{"SCST", "RAWO"}, true}} {
		t.Run(name, func(t *testing.T) {
			followed := make(chan struct{})
			c := serve(t, func(ctx context.Context, ring *shm.Writer) {
				_ = ring.Write(shm.ScenarioStart, nil)
				select {
				case <-followed:
				case <-ctx.Done():
				}
				for range count {
					_ = ring.Write(shm.RawOutput, []byte("{}"))
				}
				code := shm.EncodeCode(0)
				_ = ring.Write(shm.Exit, code[:])
			})
			got, omitted := 0, uint64(0)
			_, err := c.Tail(t.Context(), control.TailOptions{Follow: true, Types: tc.types}, func(m control.Message) error {
				switch m.Type {
				case "SCST":
					close(followed)
				case "RAWO":
					got++
				}
				return nil
			}, func(n uint64) { omitted += n })
			if err != nil || got == 0 || got+int(omitted) != count || tc.all != (omitted == 0) {
				t.Errorf("%d, and %d were left out: %v", got, omitted, err)
			}
		})
	}
}

// Who follows a type gets it, and is told of it alone, whatever else there is in bulk.
func TestFollowingBesideAFlood(t *testing.T) {
	const flood, count = 50000, 100
	followed := make(chan struct{})
	c := serve(t, func(ctx context.Context, ring *shm.Writer) {
		_ = ring.Write(shm.ScenarioStart, nil)
		select {
		case <-followed:
		case <-ctx.Done():
		}
		for i := range flood {
			_ = ring.WriteWait(ctx, shm.RawOutput, []byte("{}"))
			if i%(flood/count) == flood/count-1 {
				_ = ring.WriteWait(ctx, shm.Stderr, []byte("x"))
			}
		}
		code := shm.EncodeCode(0)
		_ = ring.WriteWait(ctx, shm.Exit, code[:])
	})
	got, omitted := 0, uint64(0)
	types := []string{"SCST", "STDE"}
	_, err := c.Tail(t.Context(), control.TailOptions{Follow: true, Types: types}, func(m control.Message) error {
		if m.Type == "SCST" {
			close(followed)
		} else {
			got++
		}
		return nil
	}, func(n uint64) { omitted += n })
	if err != nil || got != count || omitted != 0 {
		t.Errorf("%d of %d, and %d were left out: %v", got, count, omitted, err)
	}
}

// What is asked from a number on begins there, and the end says where to go on.
func TestTailFromANumber(t *testing.T) {
	c := serve(t, func(ctx context.Context, ring *shm.Writer) {
		for range 5 {
			_ = ring.Write(shm.TestResult, []byte("{}"))
		}
		<-ctx.Done()
	})
	until(t, "the messages never came", func() bool {
		s, err := c.Status(t.Context())
		return err == nil && s.Kept == 5
	})
	for from, want := range map[uint64]int{0: 5, 3: 2, 5: 0, 1 << 63: 0} {
		n := 0
		end, err := c.Tail(t.Context(), control.TailOptions{From: from}, func(m control.Message) error {
			if m.Seq != int(from)+n {
				t.Errorf("%d: %d", from, m.Seq)
			}
			n++
			return nil
		}, nil)
		if err != nil || n != want || end.Result != nil || want > 0 && end.Next != 5 {
			t.Errorf("%d: %d messages, %+v, %v", from, n, end, err)
		}
	}
}

// A ring is what inspect reads, and as long as the region.
func TestRing(t *testing.T) {
	c := serve(t, func(ctx context.Context, ring *shm.Writer) {
		_ = ring.Write(shm.RawOutput, bytes.Repeat([]byte("x"), 200000))
		<-ctx.Done()
	})
	until(t, "the message never came", func() bool {
		s, err := c.Status(t.Context())
		return err == nil && s.Messages == 1
	})
	var image bytes.Buffer
	if err := c.Ring(t.Context(), &image); err != nil || image.Len() != 1<<20 {
		t.Fatalf("%d bytes, %v", image.Len(), err)
	}
	s, err := shm.NewSnapshot(bytes.NewReader(image.Bytes()), uint64(image.Len()))
	if err == nil {
		err = s.Rewind()
	}
	if err != nil {
		t.Fatal(err)
	}
	sizes := []int{}
	if err := s.Drain(func(m shm.Message) error {
		sizes = append(sizes, len(m.Payload))
		return nil
	}); err != nil || len(sizes) != 1 || sizes[0] != 200000 {
		t.Errorf("%v, %v", sizes, err)
	}
}

// What is asked of the guest is in its ring's header, and an event of the run.
func TestRequests(t *testing.T) {
	c := control.Client{Path: filepath.Join(folder(t), "run.sock")}
	end, err := start(c.Path, idle)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := errors.Join(c.Signal(ctx, 0, 7), c.Stall(ctx), c.Dump(ctx)); err != nil {
		t.Error(err)
	}
	var image bytes.Buffer
	until(t, "the dump was never asked for", func() bool {
		image.Reset()
		if err := c.Ring(ctx, &image); err != nil {
			t.Fatal(err)
		}
		return image.Bytes()[12] == shm.DumpRequest
	})
	if control := image.Bytes()[12:16]; !bytes.Equal(control, []byte{shm.DumpRequest, shm.StallRequest, 7, 0}) {
		t.Errorf("control bytes %x", control)
	}
	if text, err := c.Metrics(ctx); err != nil || !strings.Contains(text, "ktstr_vmm_ring_drops_total 0") {
		t.Errorf("%s, %v", text, err)
	}
	if err := c.Stop(ctx, false); err != nil {
		t.Error(err)
	}
	r, err := end(ctx)
	if err != nil || r.ExitCode != 143 || !strings.Contains(r.Reason, "ktstr-vmm ctl stop") {
		t.Errorf("%+v, %v", r, err)
	}
	for _, kind := range []string{run.EventSignal, run.EventStall, run.EventDump, run.EventStop} {
		if !slices.ContainsFunc(r.Events, func(e run.Event) bool { return e.Kind == kind }) {
			t.Errorf("no %s in %+v", kind, r.Events)
		}
	}
}

// A socket that was left behind is replaced; one at which somebody listens, and what is no socket, are left alone.
func TestListen(t *testing.T) {
	dir := folder(t)
	path := filepath.Join(dir, "a.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	_ = left.Close()
	end, err := start(path, idle)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := control.Listen(control.Config{Path: path}); !errors.Is(err, control.ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Listen(control.Config{Path: file}); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 108))
	if _, err := control.Listen(control.Config{Path: long}); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("a long path: %v", err)
	}
	err = control.Client{Path: long}.Stall(t.Context())
	if err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("a long path to ask: %v", err)
	}
	if err := (control.Client{Path: path}).Stop(t.Context(), true); err != nil {
		t.Error(err)
	}
	if _, err := end(t.Context()); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 || names[0].Name() != "file" {
		t.Errorf("left: %v, %v", names, err)
	}
}

// Of many that take over one socket at the same time, one has it.
func TestListenAtTheSameTime(t *testing.T) {
	path := filepath.Join(folder(t), "a.sock")
	for range 20 {
		left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		left.SetUnlinkOnClose(false)
		_ = left.Close()
		var all sync.WaitGroup
		servers := make(chan *control.Server, 8)
		for range cap(servers) {
			all.Go(func() {
				s, err := control.Listen(control.Config{Path: path})
				if err == nil {
					servers <- s
				} else if !errors.Is(err, control.ErrInUse) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		close(servers)
		if len(servers) != 1 {
			t.Errorf("%d have it", len(servers))
		}
		for s := range servers {
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// Runs are found by the beginnings of their IDs. Sockets of dead runs are removed, and others left alone.
func TestList(t *testing.T) {
	dir := folder(t)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	none := func() {
		if found, err := control.List(t.Context(), ""); err != nil || len(found) != 0 {
			t.Errorf("none: %+v, %v", found, err)
		}
	}
	none()
	if os.Geteuid() == 0 { // without XDG_RUNTIME_DIR, its runs are elsewhere
		if err := os.MkdirAll("/run/ktstr-vmm", 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", fmt.Sprintf("/run/ktstr-vmm/%016x.sock", os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		none()
		_ = l.Close()
	}
	path, err := control.DefaultPath("0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	for _, name := range []string{"0123456789abcd00.sock", "exporter.sock"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(filepath.Dir(path), name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		_ = l.Close()
	}
	end, err := start(path, idle)
	if err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]int{"": 1, "0": 1, "0123456789abcdef": 1, "f": 0, "0123456789abcdef0": 0} {
		found, err := control.List(t.Context(), prefix)
		if err != nil || len(found) != want || want == 1 && (found[0].Path != path || found[0].Status.Name != "a test") {
			t.Errorf("%q: %+v, %v", prefix, found, err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 || entries[0].Name() != filepath.Base(path) ||
		entries[1].Name() != "exporter.sock" {
		t.Errorf("%v, %v", entries, err)
	}

	// One that accepts and says nothing is stopped, or not yet a run. It is none to be left out.
	other := filepath.Join(filepath.Dir(path), "0000000000000000.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: other, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	found, err := control.List(t.Context(), "")
	if err != nil || len(found) != 2 || !errors.Is(found[0].Err, context.DeadlineExceeded) || found[1].Path != path {
		t.Errorf("two: %+v, %v", found, err)
	}
	if err := (control.Client{Path: path}).Stop(t.Context(), true); err != nil {
		t.Error(err)
	}
	if _, err := end(t.Context()); err != nil {
		t.Error(err)
	}
}

// A folder that is open to others gets no socket.
func TestDefaultPathIsPrivate(t *testing.T) {
	dir := folder(t)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if err := os.Mkdir(filepath.Join(dir, "ktstr-vmm"), 0o755); err != nil {
		t.Fatal(err)
	}
	if path, err := control.DefaultPath("0123456789abcdef"); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("%s, %v", path, err)
	}
}

// says is a client of what answers one request with a text, and hangs up if told to.
func says(t *testing.T, text string, hangUp bool) control.Client {
	path := filepath.Join(folder(t), "a.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		in := bufio.NewReader(conn)
		_, _ = in.ReadString('\n')
		_, _ = io.WriteString(conn, text)
		if !hangUp {
			_, _ = in.ReadString('\n')
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return control.Client{Path: path}
}

// A run that dies while it is asked ends the answer, wherever that is; and what is no answer is none.
func TestAnswersThatEnd(t *testing.T) {
	for text, want := range map[string]error{
		"":                               control.ErrOver,
		`{"ktstr_vmm_control":1,"sta`:    control.ErrOver,
		"HTTP/1.1\n":                     control.ErrProtocol,
		`{"ktstr_vmm_control":2}` + "\n": control.ErrProtocol,
		`{"ktstr_vmm_control":1,"status":{}}` + "\n":                           control.ErrOver,
		`{"ktstr_vmm_control":1,"end":{}}` + "\n":                              control.ErrProtocol, // and no status
		strings.Repeat("x", 5<<20) + "\n":                                      control.ErrProtocol,
		`{"ktstr_vmm_control":1,"error":{"code":"over","message":"x"}}` + "\n": control.ErrOver,
	} {
		if _, err := says(t, text, true).Status(t.Context()); !errors.Is(err, want) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

// full takes a MiB, which is more than what comes of an answer that has no end.
type full struct{ n int }

func (f *full) Write(p []byte) (int, error) {
	if f.n += len(p); f.n > 1<<20 {
		return 0, syscall.ENOSPC
	}
	return len(p), nil
}

// Who answers may be no run: what a client takes of it has bounds, in bytes and in time.
func TestHostileAnswers(t *testing.T) {
	t.Parallel() // it waits
	text := strings.Repeat(`{"ktstr_vmm_control":1,"text":"`+strings.Repeat("x", 1<<20)+`"}`+"\n", 5)
	if got, err := says(t, text, true).Metrics(t.Context()); !errors.Is(err, control.ErrProtocol) {
		t.Errorf("metrics of %d bytes: %v", len(got), err)
	}
	cpus := strings.Repeat(`{"ktstr_vmm_control":1,"cpu":{"pc":"1","sp":"2","registers":[{"value":"3","symbol":"`+
		strings.Repeat("x", 1<<20)+`"}]}}`+"\n", 5)
	if got, _, err := says(t, cpus, true).Registers(t.Context()); !errors.Is(err, control.ErrProtocol) {
		t.Errorf("registers of %d CPUs: %v", len(got), err)
	}
	for _, size := range []uint64{1 << 40, 1<<64 - 1} {
		ring := fmt.Sprintf(`{"ktstr_vmm_control":1,"size":%d}`+"\n"+`{"end":{}}`+"\n", size)
		if err := says(t, ring, true).Ring(t.Context(), &full{}); !errors.Is(err, control.ErrProtocol) {
			t.Errorf("a ring of %d bytes: %v", size, err)
		}
	}
	for name, ring := range map[string]string{
		"no size": `{"ktstr_vmm_control":1,"end":{}}` + "\n",
		"a new one": `{"ktstr_vmm_control":1,"size":9,"at":5,"data":"AAAA"}` + "\n" + `{"size":4}` + "\n" +
			`{"end":{}}` + "\n",
	} {
		if err := says(t, ring, true).Ring(t.Context(), io.Discard); !errors.Is(err, control.ErrProtocol) {
			t.Errorf("a ring with %s: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), hangLimit)
	defer cancel()
	err := says(t, `{"ktstr_vmm_control":1,"size":4096}`+"\n", false).Ring(ctx, io.Discard)
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		t.Errorf("one that falls silent: %v, %v", err, ctx.Err())
	}
}

// Whoever takes longer over a message than a run waits for its clients is cut off, and gets the rest all the same.
func TestSlowReaders(t *testing.T) {
	t.Parallel() // it waits
	const count = 20000
	steps := steps(count)
	c := serve(t, func(ctx context.Context, ring *shm.Writer) {
		steps(ctx, ring)
		<-ctx.Done()
	})
	until(t, "the messages never came", func() bool {
		s, err := c.Status(t.Context())
		return err == nil && s.Kept == count+1
	})
	next := 0
	_, err := c.Tail(t.Context(), control.TailOptions{}, func(m control.Message) error {
		if m.Seq != next {
			return fmt.Errorf("%d, where %d was to come", m.Seq, next)
		}
		if next == 0 {
			time.Sleep(control.WriteLimit + time.Second)
		}
		next++
		return nil
	}, nil)
	if err != nil || next != count+1 {
		t.Errorf("%d messages: %v", next, err)
	}
}

// strangerAsks makes this program a client that is another user's.
const strangerAsks = "KTSTR_TEST_STRANGER_ASKS"

func stranger(path string) {
	_, err := control.Client{Path: path}.Status(context.Background())
	fmt.Println(err)
	os.Exit(0)
}

// Other users get no answer, even where the file would let them in.
func TestStrangers(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", os.ErrPermission)
	}
	c := serve(t, idle)
	if err := errors.Join(os.Chmod(filepath.Dir(c.Path), 0o755), os.Chmod(c.Path, 0o666)); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(filepath.Dir(c.Path), "stranger") // where it may execute it
	if err := os.WriteFile(mine, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(mine)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), strangerAsks+"="+c.Path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "a process of the user 65534") {
		t.Errorf("%s, %v", out, err)
	}
}
