package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// sched_ext's dumps, those that SysRq-D asks for and those that it makes when it throws a scheduler out, are events of
// the kernel's tracing, a line each: kernel/sched/ext.c, dump_line; include/trace/events/sched_ext.h. The agent has
// them in a tracing instance of its own (Linux, Documentation/trace/ftrace.rst), so that a command can use the others.
const (
	tracingDir      = "/sys/kernel/tracing"
	tracingInstance = "instances/ktstr-vmm"
	dumpEvent       = "events/sched_ext/sched_ext_dump"
	dumpMark        = "sched_ext_dump: " // in front of a line's text
)

const (
	// dumpBuffer is how much the kernel keeps of a dump until it is read, in KiB for each CPU.
	dumpBuffer = 512
	// dumpLimit is how much of a dump is sent, in bytes.
	dumpLimit = 128 << 10
	// dumpPoll is how often the trace is read; what ends a scheduler is not waited for.
	dumpPoll = 100 * time.Millisecond
)

// dumps sends sched_ext's dumps as they come.
type dumps struct {
	dir  string // of the tracing instance
	most int    // bytes of a piece's text
	send func(context.Context, shm.DumpPiece) error

	mu      sync.Mutex
	fd      int
	buf     []byte
	line    []byte // the beginning of one whose end has not been read
	text    []byte // lines that were not sent
	number  uint32 // of the dump
	sent    int    // bytes of it
	omitted uint32 // bytes of it that were not sent, since the last piece
	lost    uint64 // events that the kernel had no room for, all in all
}

// watchDumps sends the kernel's dumps from now on, until ctx ends. A kernel without sched_ext makes none.
func (a *agent) watchDumps(ctx context.Context) {
	a.openDumps.Do(func() {
		if a.kernelSays(schedExtState) == "" {
			return
		}
		send := func(ctx context.Context, p shm.DumpPiece) error {
			return a.writer.WriteWait(ctx, shm.SchedulerDump, p.Encode())
		}
		d, err := openDumps(a.path(tracingDir), min(shm.MaxDumpPiece, a.chunk()), send)
		if err != nil {
			a.complain(err)
			return
		}
		a.dumps.Store(d)
		a.background(func() { d.run(ctx) })
	})
}

// openDumps fails where the kernel has no such event.
func openDumps(tracing string, most int, send func(context.Context, shm.DumpPiece) error) (*dumps, error) {
	if _, err := os.Stat(filepath.Join(tracing, dumpEvent)); err != nil {
		return nil, fmt.Errorf("sched_ext's dumps can't be read: %w", err)
	}
	d := &dumps{dir: filepath.Join(tracing, tracingInstance), most: most, send: send, buf: make([]byte, 16<<10)}
	if err := os.Mkdir(d.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	for _, f := range []struct{ name, value string }{
		{"buffer_size_kb", strconv.Itoa(dumpBuffer)},
		{"options/overwrite", "0"}, // a dump's beginning says most
		{dumpEvent + "/enable", "1"},
	} {
		if err := os.WriteFile(filepath.Join(d.dir, f.name), []byte(f.value), 0); err != nil {
			return nil, err
		}
	}
	var err error
	pipe := filepath.Join(d.dir, "trace_pipe")
	if d.fd, err = unix.Open(pipe, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", pipe, err)
	}
	return d, nil
}

// run sends what comes until ctx ends.
func (d *dumps) run(ctx context.Context) {
	tick := time.NewTicker(dumpPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			d.mu.Lock()
			defer d.mu.Unlock()
			unix.Close(d.fd)
			d.fd = -1
			return
		case <-tick.C:
			d.flush(ctx)
		}
	}
}

// flush sends what has come. Where the host makes no room for it until ctx ends it is omitted.
func (d *dumps) flush(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	any := false
	for {
		n, err := unix.Read(d.fd, d.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		any = true
		for rest := d.buf[:n]; ; {
			line, after, ends := bytes.Cut(rest, []byte{'\n'})
			d.line = append(d.line, line...)
			if !ends {
				break
			}
			d.take(ctx, string(d.line))
			d.line, rest = d.line[:0], after
		}
	}
	if any {
		d.sendText(ctx)
		d.countLost()
		d.sendText(ctx)
	}
}

// take takes a line of the trace: "COMM-PID [CPU] FLAGS TIME: sched_ext_dump: TEXT".
func (d *dumps) take(ctx context.Context, traced string) {
	_, text, ok := strings.Cut(traced, dumpMark)
	if !ok {
		return // a remark of the tracing's own
	}
	if beginsDump(text) || d.number == 0 {
		d.sendText(ctx)
		d.number++
		d.sent, d.omitted = 0, 0
	}
	if len(d.text)+len(text)+1 > d.most {
		d.sendText(ctx)
	}
	if d.sent+len(d.text)+len(text)+1 > dumpLimit || len(text)+1 > d.most {
		d.omitted += uint32(len(text) + 1)
		return
	}
	d.text = append(append(d.text, text...), '\n')
}

// beginsDump reports whether a line is a dump's first: kernel/sched/ext.c, scx_dump_state.
func beginsDump(line string) bool {
	return strings.HasPrefix(line, "Debug dump triggered by ") || strings.Contains(line, "] triggered exit kind ")
}

func (d *dumps) sendText(ctx context.Context) {
	if len(d.text) == 0 && d.omitted == 0 {
		return
	}
	if err := d.send(ctx, shm.DumpPiece{Number: d.number, Omitted: d.omitted, Text: d.text}); err != nil {
		d.omitted += uint32(len(d.text))
	} else {
		d.sent += len(d.text)
		d.omitted = 0
	}
	d.text = d.text[:0]
}

// countLost adds a line where the kernel had no room for all of a dump.
func (d *dumps) countLost() {
	files, _ := filepath.Glob(filepath.Join(d.dir, "per_cpu", "cpu*", "stats"))
	lost := uint64(0)
	for _, f := range files {
		text, _ := os.ReadFile(f)
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(line, "dropped events: "); ok {
				events, _ := strconv.ParseUint(strings.TrimSpace(n), 10, 64)
				lost += events
			}
		}
	}
	if lost > d.lost && d.number > 0 {
		d.text = fmt.Appendf(d.text, "[%d lines had no room in the kernel's trace buffer]\n", lost-d.lost)
		d.lost = lost
	}
}
