package run_test

import (
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// never is a poll interval that no run here waits for.
const never = time.Hour

// A guest's end is seen when the bell rings for it, by nothing else: there is no poll, and the guest stays. On arm64
// there is no doorbell.
func TestBellRingsForTheEnd(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for words, want := range map[string]struct {
			outcome run.Outcome
			exit    int
		}{
			"fail": {run.Exited, 3}, "sched-exit": {run.SchedulerGone, 121}, "crash": {run.Crashed, 122},
		} {
			cfg := scenario(t, onX86(b), words+" demo.stay=1")
			cfg.Poll = never
			if r := does(t, cfg, want.outcome, want.exit); r.Rings != 1 || r.Ring.BellDrains != 1 {
				t.Errorf("%s: %d rings, %d drains", words, r.Rings, r.Ring.BellDrains)
			}
		}
	})
}

// It rings for room, too: a ring that fills up many times is read by a monitor that never polls.
func TestBellRingsForRoom(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		const count, size, ring = 50, 1000, 8 << 10
		cfg := scenario(t, onX86(b), "flood demo.count=50 demo.size=1000")
		cfg.VM.Reserved, cfg.Poll = ring, never
		if r := does(t, cfg, run.Exited, 0); r.Ring.ByType["RAWO"] != count || r.Rings < count*size/ring {
			t.Errorf("%d rings, %+v", r.Rings, r.Ring)
		}
	})
}

// deaf is a machine whose bell nobody hears.
type deaf struct{ run.Machine }

func (deaf) Bell() <-chan struct{} { return nil }

// A bell that is lost changes nothing but the time.
func TestLostBell(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		for _, words := range []string{"fail", "flood demo.count=50 demo.size=1000"} {
			cfg := scenario(t, onX86(b), words)
			cfg.VM.Reserved = 8 << 10
			heard := run.Run(t.Context(), cfg)
			cfg.NewMachine = func(c vm.Config) (run.Machine, error) {
				m, err := vm.New(c)
				return deaf{m}, err
			}
			lost := does(t, cfg, heard.Outcome, heard.ExitCode)
			if lost.Rings == 0 || lost.Ring.BellDrains != 0 || lost.Ring.Messages != heard.Ring.Messages {
				t.Errorf("%s: %d rings, %+v, want as many messages as of %+v", words, lost.Rings, lost.Ring, heard.Ring)
			}
		}
	})
}

// A guest that rings without end is drained for it as often as the poll pays for, and is stopped as any other.
func TestBellWithoutEnd(t *testing.T) {
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		const burst = 16 // drains that the poll has not paid for yet
		cfg := scenario(t, onX86(b), "doorbell")
		cfg.Timeout, cfg.Grace = 4*time.Second, 2*time.Second
		r := does(t, cfg, run.TimedOut, 124)
		if r.GuestExitCode == nil || *r.GuestExitCode != 0 {
			t.Errorf("it was not asked to stop: %s", r.Reason)
		}
		if most := burst + uint64(r.Duration/monitor.DefaultPoll); r.Rings < 10*most || r.Ring.BellDrains > most {
			t.Errorf("%d rings, %d drains for them in %v, at most %d", r.Rings, r.Ring.BellDrains, r.Duration, most)
		}
	})
}

// A machine without a bell is polled; one that rings late or for nothing is drained, and nothing else.
func TestLateBell(t *testing.T) {
	f := newFake(t, func(w *shm.Writer, stopped <-chan struct{}) {
		code := shm.EncodeCode(5)
		_ = w.Write(shm.Exit, code[:])
		<-stopped
	})
	f.bell = make(chan struct{}, 1)
	f.bell <- struct{}{} // for nothing
	cfg := f.config()
	cfg.Poll = time.Millisecond
	if r := ended(t, t.Context(), cfg, run.Exited); r.ExitCode != 5 {
		t.Errorf("%+v", r)
	}
}
