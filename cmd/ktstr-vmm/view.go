package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

// outputLimit is how much of a command's output waits for a slow reader of ours: then the ring fills, and the
// command waits.
const outputLimit = 4 << 20 // bytes

// view is what a user sees of a run while it goes on, and when it is over.
type view interface {
	// message shows a message, or says monitor.NotNow.
	message(at time.Duration, m shm.Message) monitor.Verdict
	// flush waits until what was shown is written, or ctx ends, and returns how much of the guest's output
	// is lost, in bytes.
	flush(ctx context.Context) uint64
	// summary shows what became of the run.
	summary(r *run.Result)
}

// liveView shows each message in a line, and a summary where it is wanted.
type liveView struct {
	out           *report.Stream
	live          *report.Live
	shown, colour bool // whether the summary is shown, and how
}

func newLiveView(out *report.Stream, shown, colour bool) *liveView {
	return &liveView{out, report.NewLive(out), shown, colour}
}

func (v *liveView) message(at time.Duration, m shm.Message) monitor.Verdict {
	v.live.Message(at, m)
	return monitor.Continue
}

func (v *liveView) flush(ctx context.Context) uint64 {
	v.live.Close()
	_ = v.out.Flush(ctx) // lines that nobody reads are no loss of the guest's
	return 0
}

func (v *liveView) summary(r *run.Result) {
	if v.shown {
		_ = report.Text(v.out, r, v.colour) // a Stream takes all
	}
}

// quietView shows nothing but how a run ended that did not exit with 0.
type quietView struct {
	out    *report.Stream
	colour bool
}

func (quietView) message(time.Duration, shm.Message) monitor.Verdict { return monitor.Continue }

func (quietView) flush(context.Context) uint64 { return 0 }

func (v quietView) summary(r *run.Result) {
	if r.ExitCode != 0 && r.Outcome != run.Failed { // a failure is said in a line
		_ = report.Text(v.out, r, v.colour) // a Stream takes all
	}
}

// commandView passes on what a guest's command writes, as if it ran here. Only an ending that is
// not the command's own gets a summary.
type commandView struct {
	stdout, stderr *report.Stream
	given          map[*report.Stream]uint64 // bytes of the command's; others write there, too
	colour         bool
	console        bool // whether the summary shows the console's end
}

func newCommandView(stdout, stderr *report.Stream, console, colour bool) *commandView {
	return &commandView{stdout, stderr, map[*report.Stream]uint64{}, colour, console}
}

func (v *commandView) message(_ time.Duration, m shm.Message) monitor.Verdict {
	to := map[shm.Type]*report.Stream{shm.Stdout: v.stdout, shm.Stderr: v.stderr}[m.Type]
	if to == nil || !m.CRCOK {
		return monitor.Continue
	}
	if !to.TryWrite(m.Payload, outputLimit) {
		return monitor.NotNow
	}
	v.given[to] += uint64(len(m.Payload))
	return monitor.Continue
}

func (v *commandView) flush(ctx context.Context) (lost uint64) {
	for _, s := range []*report.Stream{v.stdout, v.stderr} {
		_ = s.Flush(ctx) // Lost says more
		lost += min(v.given[s], s.Lost())
	}
	return lost
}

func (v *commandView) summary(r *run.Result) {
	if r.Outcome != run.Exited && r.Outcome != run.Failed {
		shown := *r
		if !v.console {
			shown.Console = nil
		}
		_ = report.Text(v.stderr, &shown, v.colour) // a Stream takes all
		if r.Outcome == run.TimedOut {
			_, _ = io.WriteString(v.stderr, timeoutHints(r))
		}
	}
	if r.Outcome == run.Exited && r.ExitCode == killed && bytes.Contains(r.Console, []byte(outOfMemory)) {
		fmt.Fprintln(v.stderr, "\nThe guest's kernel ran out of memory and killed the command; try more --memory.")
	}
}

// timeoutHints says what else can be behind a timeout than the command.
func timeoutHints(r *run.Result) (hints string) {
	if len(r.Phases) == 0 {
		return "" // the guest had not started, as the reason says
	}
	if r.Ring.ByType[shm.ScenarioStart.String()] == 0 {
		hints = "\nThe command had not started; --verbose shows how far the kernel came.\n"
		if r.Accelerator == (kvm.Backend{}).Name() {
			hints += "\"ktstr-vmm doctor\" says whether this host's KVM is fast enough for Linux.\n"
		}
	}
	if r.Accelerator == (qemu.Backend{}).Name() {
		hints += "\nThe guest ran on the emulator, where its kernel and the command take several times as long as on KVM: " +
			"try more --timeout.\n"
	}
	return hints
}

const (
	killed      = 137                             // 128 + SIGKILL
	outOfMemory = "Out of memory: Killed process" // Linux, mm/oom_kill.c
)
