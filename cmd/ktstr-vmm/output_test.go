package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// pausing is a reader that takes nothing for a while, and then all.
const pausing reader = "pausing"

// outlet is a pipe of this process's, and what its reader got.
type outlet struct {
	kind    reader
	r, w    *os.File
	filler  int         // bytes that were in the pipe before
	hurry   atomic.Bool // the reader is slow no more
	reading sync.WaitGroup
	got     bytes.Buffer
}

func newOutlet(t *testing.T, kind reader) *outlet {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &outlet{kind: kind, r: r, w: w}
	switch kind {
	case gone:
		r.Close()
	case stuck:
		o.filler = fill(t, w)
	default:
		o.reading.Go(o.read)
	}
	return o
}

func (o *outlet) read() {
	buf := make([]byte, 64<<10)
	if o.kind == pausing {
		time.Sleep(500 * time.Millisecond)
	}
	for {
		some := buf
		if o.kind == trickling && !o.hurry.Load() {
			some = buf[:16]
			time.Sleep(time.Millisecond)
		}
		n, err := o.r.Read(some)
		o.got.Write(some[:n])
		if err != nil {
			return
		}
	}
}

// close ends the pipe, as the program's end does, and returns all that could be read from it.
func (o *outlet) close(t *testing.T) []byte {
	t.Helper()
	o.w.Close()
	o.hurry.Store(true)
	o.reading.Wait()
	if o.kind == stuck {
		if _, err := io.Copy(&o.got, o.r); err != nil {
			t.Error(err)
		}
	}
	o.r.Close()
	return o.got.Bytes()[o.filler:]
}

// talker is a machine whose guest writes output as the agent does, and knows what it was told it could write.
type talker struct {
	memory  *guestmem.Memory
	console io.Writer
	ring    *guestmem.Window
	says    func(g *talker, ctx context.Context) error // ends where ctx does
	writer  *shm.Writer
	control shm.Control
	written map[shm.Type][]byte // to be looked at when the machine has ended

	once   sync.Once
	ctx    context.Context
	cancel context.CancelFunc
	reason error
	done   chan struct{}
}

func newTalker(cfg vm.Config, says func(*talker, context.Context) error) (*talker, error) {
	layout, err := cfg.Kernel.Board().Layout(cfg.Memory, cfg.Reserved)
	if err != nil {
		return nil, err
	}
	g := &talker{says: says, console: cfg.Console, written: map[shm.Type][]byte{}, done: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	at, size := layout.Reserved.Base, layout.Reserved.Size
	if g.memory, err = guestmem.New(guestmem.Region{Base: at, Mem: make([]byte, size)}); err != nil {
		return nil, err
	}
	g.ring, err = g.memory.Window(at, size)
	return g, err
}

func (g *talker) Start() (err error) {
	if g.writer, err = shm.NewWriter(g.ring); err != nil {
		return err
	}
	if g.control, err = shm.NewControl(g.ring); err != nil {
		return err
	}
	go func() {
		defer close(g.done)
		if err := g.says(g, g.ctx); err == nil {
			<-g.ctx.Done()
		}
		g.Stop(vm.ErrReset)
	}()
	return nil
}

func (g *talker) Memory() *guestmem.Memory         { return g.memory }
func (g *talker) Stop(reason error)                { g.once.Do(func() { g.reason = reason; g.cancel() }) }
func (g *talker) Done() <-chan struct{}            { return g.done }
func (g *talker) Wait() error                      { <-g.done; return g.reason }
func (g *talker) Bell() <-chan struct{}            { return nil }
func (g *talker) Rings() uint64                    { return 0 }
func (g *talker) Exits() iter.Seq2[string, uint64] { return nil }
func (g *talker) FirstExit() time.Time             { return time.Time{} }
func (g *talker) Close() error                     { g.cancel(); return nil }

// errReset ends a talker's machine.
var errReset = errors.New("the guest resets its machine")

// outputRun is one run whose output has to be right to the byte.
type outputRun struct {
	Stdout, Stderr reader
	Ring           config.Size
	Bytes          int // to be written
	Ending         string
	Timeout        time.Duration
	Cancelled      time.Duration // how long after the guest's start the run is; 0: it is not
	Poll           time.Duration
	Verbose        bool // stderr has the console, which has a line
}

func newOutputRun(r *rand.Rand) outputRun {
	kinds := append(readers, pausing)
	c := outputRun{
		Stdout: kinds[r.IntN(len(kinds))],
		Stderr: kinds[r.IntN(len(kinds))],
		Ring:   config.Size(8<<10) << r.IntN(8),
		Bytes:  r.IntN(1 << (10 + r.IntN(14))), // as many small ones as large ones
		Ending: []string{"exit", "exit", "crash", "reset", "hang", "obey"}[r.IntN(6)],
		Poll:   time.Duration(1+r.IntN(10)) * time.Millisecond,

		Timeout: 1500 * time.Millisecond,
	}
	if r.IntN(3) == 0 { // more than what waits for a reader, the pipe and the ring
		c.Bytes = outputLimit + r.IntN(3*outputLimit)
	}
	if r.IntN(4) == 0 {
		c.Cancelled = time.Duration(r.IntN(1500)) * time.Millisecond
	}
	return c
}

// guest is what the machine does. Its bytes go on by no rule that a cut or a swap would keep, and are no UTF-8: what
// is said beside them is.
func (c outputRun) guest(r *rand.Rand) func(*talker, context.Context) error {
	return func(g *talker, ctx context.Context) error {
		if g.console != nil {
			fmt.Fprintln(g.console, "a kernel's line")
		}
		largest := int(min(64<<10, g.writer.Capacity()/4)) // as the agent has it
		for left := c.Bytes; left > 0 && ctx.Err() == nil; {
			output := make([]byte, 0, largest+8)
			n := min(left, 1+r.IntN(largest))
			for len(output) < n {
				output = binary.LittleEndian.AppendUint64(output, 0x8080808080808080|r.Uint64()&0x3f3f3f3f3f3f3f3f)
			}
			output, left = output[:n], left-n
			typ := []shm.Type{shm.Stdout, shm.Stderr}[r.IntN(2)]
			if err := g.writer.WriteWait(ctx, typ, output); err != nil {
				return err
			}
			g.written[typ] = append(g.written[typ], output...)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		code := shm.EncodeCode(3)
		switch c.Ending {
		case "obey":
			if _, err := g.control.WaitFor(ctx, shm.SlotHost); err != nil {
				return err
			}
			return g.writer.WriteWait(ctx, shm.Exit, code[:])
		case "exit":
			return g.writer.WriteWait(ctx, shm.Exit, code[:])
		case "crash":
			return g.writer.WriteWait(ctx, shm.Crash, []byte("it breaks"))
		case "reset":
			return errReset
		}
		return nil
	}
}

// No byte is lost that the guest was told it could write, whoever reads and however the run ends: what came out
// is how the guest's output begins, and how much is missing is in the report and no success. The seed is in the log.
func TestOutputIsExact(t *testing.T) {
	seed := chaosSeed(t)
	leavesNothing(t)
	runs := 128
	if testing.Short() {
		runs = 32
	}
	const atOnce = 16 // most of them wait for their readers
	var running sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range runs {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		c := newOutputRun(r)
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			t.Run(fmt.Sprint(i), func(t *testing.T) { c.check(t, r) })
		})
	}
	running.Wait()
}

// Who reads neither the console nor what is said keeps no report from who reads that, and no exit code.
func TestReportBesideAStuckReader(t *testing.T) {
	t.Parallel()
	c := outputRun{Stdout: fast, Stderr: stuck, Ring: 8 << 10, Ending: "exit", Poll: time.Millisecond, Timeout: hangLimit,
		Verbose: true}
	for _, path := range []string{filepath.Join(t.TempDir(), "report"), "-"} {
		stdout, stderr := newOutlet(t, c.Stdout), newOutlet(t, c.Stderr)
		_, code := c.run(t, rand.New(rand.NewPCG(0, 0)), stdout, stderr, path)
		text := stdout.close(t)
		stderr.close(t)
		var err error
		if path != "-" {
			text, err = os.ReadFile(path)
		}
		var said outputReport
		if err := errors.Join(err, json.Unmarshal(text, &said)); err != nil {
			t.Errorf("--report %s: exit code %d, %v", path, code, err)
		}
		if code != 3 || said.Code != 3 {
			t.Errorf("--report %s: exit code %d, %d in the report", path, code, said.Code)
		}
	}
}

// outputReport is what is looked at of a report.
type outputReport struct {
	Outcome run.Outcome `json:"outcome"`
	Code    int         `json:"exit_code"`
	Omitted struct {
		Output int `json:"output_bytes"`
	} `json:"omitted"`
}

// check makes the run.
func (c outputRun) check(t *testing.T, r *rand.Rand) {
	stdout, stderr := newOutlet(t, c.Stdout), newOutlet(t, c.Stderr)
	path := filepath.Join(t.TempDir(), "report")
	g, code := c.run(t, r, stdout, stderr, path)
	out, errOut := stdout.close(t), stderr.close(t)
	if g == nil {
		return // its deadline passed before the guest started
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var said outputReport
	if err := json.Unmarshal(text, &said); err != nil {
		t.Fatal(err)
	}
	written := len(g.written[shm.Stdout]) + len(g.written[shm.Stderr])
	t.Logf("%+v: %s, exit code %d, %d bytes of %d, %d lost",
		c, said.Outcome, code, len(out)+len(errOut), written, said.Omitted.Output)
	if !bytes.HasPrefix(g.written[shm.Stdout], out) {
		t.Errorf("%d bytes of stdout are not the first of the %d that were written", len(out), len(g.written[shm.Stdout]))
	}
	same := 0
	if bytes.HasPrefix(g.written[shm.Stderr], errOut) { // byte by byte it takes long under the race detector
		same = len(errOut)
	}
	for same < min(len(errOut), len(g.written[shm.Stderr])) && errOut[same] == g.written[shm.Stderr][same] {
		same++
	}
	if !utf8.Valid(errOut[same:]) {
		t.Errorf("%d bytes of stderr are not the first of the %d that were written", len(errOut), len(g.written[shm.Stderr]))
	}
	c.checkLoss(t, said, code, written, len(out)+same)
}

// checkLoss compares what a report says of bytes that had no reader with what came of those that were written.
func (c outputRun) checkLoss(t *testing.T, said outputReport, code, written, came int) {
	t.Helper()
	lost := said.Omitted.Output
	if came+lost < written {
		t.Errorf("%d bytes of %d are missing, and %d were said to", written-came, written, lost)
	}
	if c.Stdout != trickling && c.Stderr != trickling && came+lost != written { // it may take some more while that is said
		t.Errorf("%d bytes came, and %d were said to be lost: %d were written", came, lost, written)
	}
	reads := func(kind reader) bool { return kind == fast || kind == pausing }
	if reads(c.Stdout) && reads(c.Stderr) && lost != 0 {
		t.Errorf("%d bytes were said to be lost, and both readers took all", lost)
	}
	if said.Code != code {
		t.Errorf("exit code %d, %d in the report", code, said.Code)
	}
	wanted := map[run.Outcome]int{
		run.Exited: 3, run.Failed: 125, run.Crashed: 122, run.NoVerdict: 120, run.TimedOut: 124, run.Interrupted: 130,
	}
	if want, ok := wanted[said.Outcome]; !ok || code != want {
		t.Errorf("%s, exit code %d", said.Outcome, code)
	}
	if said.Outcome == run.Exited && lost != 0 || said.Outcome == run.Failed && lost == 0 {
		t.Errorf("%s, and %d bytes are lost", said.Outcome, lost)
	}
}

// run runs the guest as "run" does, and returns its machine, if that was started, and the exit code.
func (c outputRun) run(t *testing.T, r *rand.Rand, stdout, stderr *outlet, report string) (g *talker, code int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := newOptions(config.Run)
	command := &cobra.Command{}
	o.Accel, o.Memory, o.ShmSize, o.Poll = "emulator", 16<<20, c.Ring, c.Poll
	o.Timeout, o.Grace, o.Report, o.ReportFormat = c.Timeout, 300*time.Millisecond, report, "json"
	o.Verbose = c.Verbose
	command.SetContext(ctx)
	// As writers only: whoever asks a file for its number makes it blocking, and nothing would end its writer here.
	command.SetOut(struct{ io.Writer }{stdout.w})
	command.SetErr(struct{ io.Writer }{stderr.w})
	machines := make(chan *talker, 1)
	cfg := run.Config{
		NewMachine: func(cfg vm.Config) (run.Machine, error) {
			m, err := newTalker(cfg, c.guest(r))
			machines <- m
			return m, err
		},
		OnStart: func() {
			g = <-machines
			if c.Cancelled > 0 {
				time.AfterFunc(c.Cancelled, cancel)
			}
		},
	}
	ended := time.AfterFunc(hangLimit, func() { t.Errorf("%+v: it has not ended after %v", c, hangLimit) })
	defer ended.Stop()
	err := o.run(command, cfg, func(func(string, ...any)) (vm.Config, io.Closer, error) {
		return vm.Config{Kernel: x86.ELF{}}, io.NopCloser(nil), nil
	})
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	return g, code
}
