package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

const (
	ringBase = 1 << 20
	ringSize = 1 << 20
	// hangs is how long a run may take that does not hang.
	hangs = time.Minute
)

// guest is an agent whose guest is a folder: this process is its PID 1, and the folder's /dev/mem a
// file that the host's side maps as well.
type guest struct {
	*agent
	t       *testing.T
	reader  *shm.Reader
	control shm.Control      // the host's
	area    *guestmem.Window // for calls
	says    *said            // on the console
	on      func(string)     // what the host does with a message
	drained chan struct{}    // closed when the host reads no more
	rings   atomic.Int32     // of the host's doorbell
}

// said is text that many write.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// newGuest returns a guest for a shell's script.
func newGuest(t *testing.T, script string) *guest { return newGuestFor(t, shellJob(script)) }

func shellJob(script string) agentproto.Job {
	return agentproto.Job{
		Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: "/there",
	}
}

func newGuestFor(t *testing.T, j agentproto.Job) *guest {
	t.Helper()
	// A socket's path is short: unix(7).
	root, err := os.MkdirTemp("", "guest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	p := shm.Params{Base: ringBase, Size: ringSize}
	g := &guest{t: t, says: &said{}, on: func(string) {}, drained: make(chan struct{})}
	g.agent = newAgent(root, g.says, kernel{
		mount:       func(string, string, string, uintptr, string) error { return nil },
		setHostname: func([]byte) error { return nil },
		setLimit:    func(int, *unix.Rlimit) error { return nil },
		setRealTime: func(int, bool) error { return nil },
		loadModule:  func(int, string, int) error { return nil },
		ringBell:    func() { g.rings.Add(1) },
	})
	g.write("/proc/cmdline", "quiet "+p.String()+" panic=-1\n")
	g.write("/proc/self/oom_score_adj", "0\n")
	g.write("/proc/sysrq-trigger", "")
	g.write(agentproto.JobPath, j.Encode())
	g.write("/dev/mem", "")
	g.openHost()
	// What a guest's processes leave behind becomes PID 1's.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	return g
}

// write makes a file of the guest's.
func (g *guest) write(path, text string) {
	g.t.Helper()
	if err := os.MkdirAll(filepath.Dir(g.path(path)), 0o755); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(g.path(path), []byte(text), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// read returns what a file of the guest's has.
func (g *guest) read(path string) string {
	g.t.Helper()
	text, err := os.ReadFile(g.path(path))
	if err != nil {
		g.t.Error(err)
	}
	return string(text)
}

// openHost maps the ring, as the host does.
func (g *guest) openHost() {
	g.t.Helper()
	f, err := os.OpenFile(g.path("/dev/mem"), os.O_RDWR, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	const size = ringSize + call.Size
	if err := f.Truncate(ringBase + size); err != nil {
		g.t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), ringBase, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			g.t.Error(err)
		}
	})
	memory, err := guestmem.New(guestmem.Region{Base: ringBase, Mem: mem})
	if err != nil {
		g.t.Fatal(err)
	}
	region, err := memory.Window(ringBase, ringSize)
	if err != nil {
		g.t.Fatal(err)
	}
	if g.area, err = memory.Window(ringBase+ringSize, call.Size); err != nil {
		g.t.Fatal(err)
	}
	if err := shm.Init(region); err != nil {
		g.t.Fatal(err)
	}
	if g.reader, err = shm.NewReader(region, shm.Limits{}); err != nil {
		g.t.Fatal(err)
	}
	if g.control, err = shm.NewControl(region); err != nil {
		g.t.Fatal(err)
	}
}

// boot runs the agent to its end and returns what the host read, as "TYPE payload".
func (g *guest) boot() (messages []string) {
	g.t.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { done <- g.agent.run(ctx) }()
	late := time.After(hangs)
	for {
		select {
		case err := <-done:
			if err != nil {
				g.t.Error(err)
			}
			return g.drain(messages)
		case <-late:
			g.t.Fatalf("the agent has not ended after %v; it sent %.2000q, console %s", hangs, messages, g.says)
		case <-time.After(time.Millisecond):
			messages = g.drain(messages)
		}
	}
}

func (g *guest) drain(messages []string) []string {
	g.t.Helper()
	d := g.reader.Drain(func(m shm.Message) bool {
		messages = append(messages, fmt.Sprintf("%v %s", m.Type, m.Payload))
		g.on(messages[len(messages)-1])
		return true
	})
	if d.Fault.Kind != shm.NoFault {
		g.t.Fatal(d.Fault)
	}
	return messages
}

// code is a message with a code.
func code(t shm.Type, c int32) string {
	p := shm.EncodeCode(c)
	return fmt.Sprintf("%v %s", t, p[:])
}

// without returns the messages of other types.
func without(t shm.Type, messages []string) []string {
	return slices.DeleteFunc(slices.Clone(messages), func(m string) bool { return strings.HasPrefix(m, t.String()+" ") })
}

// of returns the messages of a type.
func of(t shm.Type, messages []string) (of []string) {
	for _, m := range messages {
		if strings.HasPrefix(m, t.String()+" ") {
			of = append(of, m)
		}
	}
	return of
}

// output is what all messages of a type have.
func output(t shm.Type, messages []string) string {
	var b strings.Builder
	for _, m := range of(t, messages) {
		b.WriteString(strings.TrimPrefix(m, t.String()+" "))
	}
	return b.String()
}

func wantMessages(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %.2000q\nwant %q", got, want)
	}
}
