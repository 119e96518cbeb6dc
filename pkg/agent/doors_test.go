package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/ktstr"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opened are doors to a ring of their own.
type opened struct {
	*doors
	reader *shm.Reader

	mu         sync.Mutex
	complaints []string
}

func open(t *testing.T, size uint64) *opened {
	t.Helper()
	memory, err := guestmem.New(guestmem.Region{Base: 0, Mem: make([]byte, size)})
	if err != nil {
		t.Fatal(err)
	}
	region, err := memory.Window(0, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := shm.Init(region); err != nil {
		t.Fatal(err)
	}
	w, err := shm.NewWriter(region)
	if err != nil {
		t.Fatal(err)
	}
	o := &opened{}
	if o.reader, err = shm.NewReader(region, shm.Limits{}); err != nil {
		t.Fatal(err)
	}
	o.doors, err = openDoors(filepath.Join(t.TempDir(), "run"), w.Capacity()-shm.MessageHeaderSize,
		w.WriteWait, func(err error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.complaints = append(o.complaints, err.Error())
		}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.close)
	for _, e := range o.env() {
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	return o
}

// messages are what the ring has, as "TYPE payload".
func (o *opened) messages(t *testing.T) []string {
	t.Helper()
	var got []string
	d := o.reader.Drain(func(m shm.Message) bool {
		got = append(got,
			fmt.Sprintf("%v %s", m.Type, m.Payload))
		return true
	})
	if d.Fault.Kind != shm.NoFault {
		t.Fatal(d.Fault)
	}
	return got
}

func TestPackageSendsAllNineTypes(t *testing.T) {
	o := open(t, 64<<10)
	h, err := ktstr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	stimulus := ktstr.Stimulus{ElapsedMS: 1, StepIndex: 2, TotalIterations: 3}
	for _, err := range []error{
		h.ScenarioStart(), h.Stimulus(stimulus),
		h.Result(map[string]any{"name": "a", "passed": true}), h.Metrics([]int{1, 2}),
		h.RawOutput("text"), h.ScenarioEnd(), h.SchedulerExit(-1), h.Crash("boom"), h.Exit(3),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	raw := stimulus.Encode()
	want := []string{"SCST ", "STIM " + string(raw[:]), `TEST {"name":"a","passed":true}`, "PMET [1,2]",
		`RAWO "text"`, "SCEN ", "SCDX \xff\xff\xff\xff", "CRSH boom", "EXIT \x03\x00\x00\x00"}
	if got := o.messages(t); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestConnectOutsideOfAGuest(t *testing.T) {
	t.Setenv(agentproto.SocketEnv, "")
	if h, err := ktstr.Connect(); !errors.Is(err, ktstr.ErrNotInGuest) {
		t.Errorf("%v, %v", h, err)
	}
}

// What the agent does not take comes back as an error, and the connection goes on where it can.
func TestSocketRefusals(t *testing.T) {
	o := open(t, 8<<10)
	h, err := ktstr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Metrics(func() {}); err == nil {
		t.Error("a function became JSON")
	}
	raw, err := net.Dial("unix", os.Getenv(agentproto.SocketEnv))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	for _, typ := range []shm.Type{shm.Stdout, shm.SchedulerChange, 7, shm.Exit, shm.SchedulerExit, shm.Stimulus} {
		if err := agentproto.WriteRequest(raw, typ, []byte("abc")); err != nil {
			t.Fatal(err)
		}
		if err := agentproto.ReadReply(raw); err == nil ||
			!strings.Contains(err.Error(), typ.String()) && !strings.Contains(err.Error(), "of 3 bytes") {
			t.Errorf("%v: %v", typ, err)
		}
	}
	if got := o.messages(t); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

// A payload that is too large gets that answer, however large it is, and the connection goes on.
func TestTooLargePayload(t *testing.T) {
	o := open(t, 8<<10)
	h, err := ktstr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, size := range []int{8 << 10, 4 << 20} {
		if err := h.Crash(strings.Repeat("x", size)); err == nil ||
			!strings.Contains(err.Error(), fmt.Sprintf("too large: CRSH of %d bytes", size)) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if err := h.Crash("x"); err != nil {
		t.Error(err)
	}
	if got := o.messages(t); !slices.Equal(got, []string{"CRSH x"}) {
		t.Errorf("got %q", got)
	}
}

// The pipe's end is the agent's to tell: no line of a guest's is one, and a writer without end does
// not keep it from coming.
func TestPipesEnd(t *testing.T) {
	o := open(t, 1<<20)
	f, err := os.OpenFile(os.Getenv(agentproto.FileEnv), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\x00end\nTEST 1\n"); err != nil {
		t.Fatal(err)
	}
	var writer sync.WaitGroup
	writer.Go(func() {
		for err := error(nil); err == nil; {
			_, err = f.WriteString("no message\n")
		}
	})
	o.flush()
	f.Close()
	writer.Wait()
	if got := o.messages(t); !slices.Equal(got, []string{"TEST 1"}) {
		t.Errorf("got %q", got)
	}
}

// A lack of file descriptors passes, and connections are taken again.
func TestLackOfDescriptors(t *testing.T) {
	o := open(t, 64<<10)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	var held []*os.File
	release := func() {
		for _, f := range held {
			f.Close()
		}
		held = nil
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
	defer release()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		held = append(held, f)
	}
	held[0].Close() // for the client's side
	h, err := ktstr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for end := time.Now().Add(hangs); !o.complained("too many open files"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no complaint")
		}
	}
	release()
	taken := make(chan error, 1)
	go func() { taken <- h.Crash("x") }()
	select {
	case err := <-taken:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(hangs):
		t.Fatal("no connection is taken any more")
	}
}

// complained reports whether a complaint says something.
func (o *opened) complained(something string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Contains(strings.Join(o.complaints, "\n"), something)
}

// Lines that come before the flush are in the ring when it returns; what is no message is said, and
// passed over.
func TestMessageFile(t *testing.T) {
	o := open(t, 64<<10)
	text := "TEST {\"passed\":false}\n\nPMET {}\nRAWO [1]\nSTIM {\"step_index\":7}\nEXIT 0\nSTIM {\"steps\":7}\n" +
		"TEST " + strings.Repeat("x", maxLine) + "\nRAWO no end of line"
	f, err := os.OpenFile(os.Getenv(agentproto.FileEnv), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	o.flush()
	stimulus := shm.StimulusEvent{StepIndex: 7}.Encode()
	want := []string{`TEST {"passed":false}`, "PMET {}", "RAWO [1]", "STIM " + string(stimulus[:]), "RAWO no end of line"}
	if got := o.messages(t); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if len(o.complaints) != 3 || !strings.Contains(o.complaints[0], `"EXIT" is none of`) ||
		!strings.Contains(o.complaints[1], "steps") ||
		!strings.Contains(o.complaints[2], "more than") {
		t.Errorf("complaints %q", o.complaints)
	}
}

// Doors can be closed while a message waits for room that nobody makes.
func TestCloseWhileWaiting(t *testing.T) {
	o := open(t, 8<<10)
	h, err := ktstr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Crash(strings.Repeat("x", 8000)); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() { waiting <- h.Crash(strings.Repeat("y", 8000)) }()
	f, err := os.OpenFile(os.Getenv(agentproto.FileEnv), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("TEST " + strings.Repeat("z", 8000) + "\n"); err != nil {
		t.Fatal(err)
	}
	o.close()
	if err := <-waiting; err == nil {
		t.Error("a message that had no room was said to be sent")
	}
}

// The agent's own panic is the guest's crash, with a trace.
func TestPanicIsACrash(t *testing.T) {
	g := newGuest(t, "")
	if err := g.openRing(); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() { g.panicked(recover()) }()
		var nowhere *agent
		nowhere.complain(errors.New(nowhere.job.Dir))
	}()
	got := g.drain(nil)
	if len(got) != 1 || !strings.HasPrefix(got[0], "CRSH ") || !strings.Contains(got[0], "nil pointer") ||
		!strings.Contains(got[0], "TestPanicIsACrash") {
		t.Errorf("got %q", got)
	}
	if !strings.Contains(g.says.String(), "nil pointer") {
		t.Errorf("the console has %q", g.says)
	}
}

// A crash is told also where the ring is full: when the host has made room, and with no message counted as
// dropped. Where the host makes none, the machine ends all the same.
func TestCrashWaitsForRoom(t *testing.T) {
	g := newGuest(t, "")
	if err := g.openRing(); err != nil {
		t.Fatal(err)
	}
	fill := func() {
		if err := g.writer.Write(shm.Stdout, make([]byte, g.writer.Capacity()-shm.MessageHeaderSize)); err != nil {
			t.Fatal(err)
		}
	}
	crash := func(text string) <-chan struct{} {
		told := make(chan struct{})
		go func() {
			defer close(told)
			defer func() { g.panicked(recover()) }()
			panic(text)
		}()
		return told
	}
	ends := func(told <-chan struct{}) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(hangs):
			t.Fatal("the agent hangs")
		}
	}
	fill()
	told := crash(strings.Repeat("x", ringSize)) // more than the ring can hold
	time.Sleep(20 * time.Millisecond)
	drained := g.drain(nil)
	ends(told)
	drained = g.drain(drained)
	if len(drained) != 2 || !strings.HasPrefix(drained[1], "CRSH the guest's agent: panic: xxx") {
		t.Errorf("got %d messages, %.100q", len(drained), drained)
	}
	g.limits.crash = 20 * time.Millisecond
	fill()
	ends(crash("nobody reads"))
	g.drain(nil)
	if n := g.reader.Stats().Drops; n != 0 {
		t.Errorf("%d messages are counted as dropped", n)
	}
	if !strings.Contains(g.says.String(), "nobody reads") {
		t.Error("the console does not say it")
	}
}

// Output that could not be sent is not waited for.
func TestCountAfterAFailure(t *testing.T) {
	g := newGuest(t, "")
	if err := g.openRing(); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteString(strings.Repeat("x", 2000)); err != nil {
		t.Fatal(err)
	}
	if err := g.writer.Write(shm.Stdout, make([]byte, ringSize-1000)); err != nil { // there is no room
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	g.forward(gone, r, shm.Stdout)
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		g.flush(t.Context(), nil, 0)
	}()
	select {
	case <-flushed:
	case <-time.After(hangs):
		t.Fatal("output that failed is still waited for")
	}
}
