package run_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hangLimit is more than what anything here should take that has nothing to wait for.
const hangLimit = 20 * time.Second

// scenario is a run of the embedded guest; the deadline is only there for hangs.
func scenario(t *testing.T, m testenv.Machine, words string) run.Config {
	t.Helper()
	return run.Config{
		VM:      vm.Config{Kernel: vmtest.Demo(t, m.Arch), Backend: m.Backend, Cmdline: "demo.scenario=" + words},
		Timeout: 60 * time.Second,
		Grace:   -1,
	}
}

// onX86 is the machine of a test that is about x86_64 alone.
func onX86(b vm.Backend) testenv.Machine { return testenv.Machine{Backend: b, Arch: "x86_64"} }

// does runs a scenario and checks how it ended.
func does(t *testing.T, cfg run.Config, outcome run.Outcome, exit int) *run.Result {
	t.Helper()
	r := run.Run(t.Context(), cfg)
	if r.Outcome != outcome || r.ExitCode != exit {
		t.Fatalf("%s, exit code %d (%s); want %s, %d\nring %+v\nconsole %q", r.Outcome, r.ExitCode, r.Reason,
			outcome, exit, r.Ring, r.Console)
	}
	return r
}

func TestOK(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		r := does(t, scenario(t, m, "ok demo.step_ms=1"), run.Exited, 0)
		want := map[string]uint64{"SCST": 1, "STIM": 3, "TEST": 1, "PMET": 1, "RAWO": 1, "SCEN": 1, "EXIT": 1}
		for name, n := range r.Ring.ByType {
			if n != want[name] {
				t.Errorf("%d messages of %s, want %d", n, name, want[name])
			}
		}
		if len(r.Stimuli) != 3 || r.Stimuli[2].StepIndex != 2 || r.Stimuli[2].TotalIterations != 3000 ||
			r.Stimuli[2].ElapsedMS < 3 {
			t.Errorf("stimuli %+v", r.Stimuli)
		}
		if len(r.TestResults) != 1 || string(r.TestResults[0].Payload) != `{"name":"demo","passed":true}` {
			t.Errorf("results %q", r.TestResults)
		}
		if *r.GuestExitCode != 0 || r.Ring.Drops != 0 || r.Ring.FaultCount() != 0 || r.FirstExit <= 0 ||
			r.Duration < r.FirstExit {
			t.Errorf("%+v", r)
		}
	})
}

// The guest's clock is the host's, within a twentieth: in one of some tries, for a busy host holds up either.
func TestGuestClock(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		const tries = 3
		for try := 1; ; try++ {
			guest, host := clocks(t, m)
			switch off := (host - guest).Abs(); {
			case guest < 2*time.Second:
				t.Fatalf("%v for the guest, which waited for 2 s", guest)
			case off <= guest/20:
				return
			case try == tries:
				t.Fatalf("%v for the guest, %v for the host", guest, host)
			}
		}
	})
}

// clocks are how long a guest takes for two steps of a second each, by its own clock and by the host's.
func clocks(t *testing.T, m testenv.Machine) (guest, host time.Duration) {
	t.Helper()
	var first, last time.Duration
	cfg := scenario(t, m, "ok demo.steps=3 demo.step_ms=1000")
	cfg.OnMessage = func(at time.Duration, m shm.Message) monitor.Verdict {
		if m.Type == shm.Stimulus {
			if first == 0 {
				first = at
			}
			last = at
		}
		return monitor.Continue
	}
	r := does(t, cfg, run.Exited, 0)
	return time.Duration(r.Stimuli[2].ElapsedMS-r.Stimuli[0].ElapsedMS) * time.Millisecond, last - first
}

func TestFail(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		r := does(t, scenario(t, m, "fail"), run.Exited, 3)
		if *r.GuestExitCode != 3 {
			t.Error(*r.GuestExitCode)
		}
	})
}

func TestSchedulerExit(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		r := does(t, scenario(t, m, "sched-exit"), run.SchedulerGone, 121)
		if *r.SchedulerExit.Code != 7 || string(r.Console) != "the scheduler is gone\n" {
			t.Errorf("%v, console %q", r.SchedulerExit, r.Console)
		}
	})
}

func TestCrash(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		r := does(t, scenario(t, m, "crash"), run.Crashed, 122)
		if !strings.HasPrefix(*r.Crash, "panic: the demo crashes") || strings.Count(*r.Crash, "\n") != 2 {
			t.Errorf("%q", *r.Crash)
		}
	})
}

func TestNoVerdict(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		for words, reason := range map[string]error{
			"silent": vm.ErrReset, "triple-fault": vmtest.TraitsOf(m.Arch).TripleFault,
		} {
			r := does(t, scenario(t, m, words), run.NoVerdict, 120)
			if !strings.Contains(r.Reason, reason.Error()) {
				t.Errorf("%s: %q", words, r.Reason)
			}
		}
	})
}

// Deaf guests, in ring 3 and halted in ring 0 with interrupts off, end at the deadline. How soon after is in
// the benchmark.
func TestDeafGuests(t *testing.T) {
	t.Parallel()
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		for _, words := range []string{"hang", "halt"} {
			cfg := scenario(t, m, words)
			cfg.Timeout, cfg.Grace = 300*time.Millisecond, 0
			r := does(t, cfg, run.TimedOut, 124)
			if r.Duration < cfg.Timeout || r.Duration > cfg.Timeout+hangLimit {
				t.Errorf("%s: ended after %v, the deadline was %v", words, r.Duration, cfg.Timeout)
			}
			if !strings.Contains(r.Reason, "hard deadline") {
				t.Error(r.Reason)
			}
		}
	})
}

// At the soft deadline the guest is asked, and what it says after is kept; the run is a timeout.
func TestGraceful(t *testing.T) {
	t.Parallel()
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		cfg := scenario(t, m, "graceful")
		cfg.Timeout, cfg.Grace = 10*time.Second, 8*time.Second // half of the timeout at most
		r := does(t, cfg, run.TimedOut, 124)
		if *r.GuestExitCode != 0 || r.Ring.ByType["SCEN"] != 1 ||
			!strings.Contains(r.Reason, "soft deadline passed, 5s before") {
			t.Errorf("%+v", r)
		}
	})
}

func TestSignals(t *testing.T) {
	t.Parallel()
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		for _, tc := range []struct {
			words   string
			signals []os.Signal
			exit    int
			guest   bool // whether the guest had time to report
		}{
			{"graceful", []os.Signal{syscall.SIGINT}, 130, true},
			{"graceful", []os.Signal{syscall.SIGTERM}, 143, true},
			{"graceful", []os.Signal{syscall.SIGTERM, syscall.SIGTERM}, 143, true}, // of a job that gets it twice
			{"hang", []os.Signal{syscall.SIGTERM, syscall.SIGINT}, 143, false},     // the second one does not wait
			{"hang", []os.Signal{syscall.SIGINT, syscall.SIGINT}, 130, false},
		} {
			cfg := scenario(t, m, tc.words)
			cfg.Grace = 30 * time.Second
			signals := make(chan os.Signal, 2)
			cfg.Signals = signals
			cfg.OnStart = func() {
				for _, s := range tc.signals {
					signals <- s
				}
			}
			r := does(t, cfg, run.Interrupted, tc.exit)
			if (r.GuestExitCode != nil) != tc.guest {
				t.Errorf("%s, %v: guest's code %v", tc.words, tc.signals, r.GuestExitCode)
			}
		}
		// A SIGTERM that comes later is another one.
		late := scenario(t, m, "hang")
		late.Grace = 30 * time.Second
		terms := make(chan os.Signal)
		late.Signals = terms
		late.OnStart = func() {
			go func() {
				terms <- syscall.SIGTERM
				time.Sleep(3 * time.Second) // on a busy machine, too
				terms <- syscall.SIGTERM
			}()
		}
		if r := does(t, late, run.Interrupted, 143); r.Duration > late.Grace {
			t.Errorf("it took %v", r.Duration)
		}
		// A deaf guest is stopped when the grace is over.
		cfg := scenario(t, m, "hang")
		cfg.Grace = 50 * time.Millisecond
		signals := make(chan os.Signal, 1)
		signals <- syscall.SIGINT
		cfg.Signals = signals
		does(t, cfg, run.Interrupted, 130)
	})
}

func TestContextEndsARun(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		ctx, cancel := context.WithCancel(t.Context())
		cfg := scenario(t, m, "hang")
		cfg.OnStart = cancel
		if r := run.Run(ctx, cfg); r.Outcome != run.Interrupted || r.ExitCode != 130 {
			t.Errorf("%s, %d", r.Outcome, r.ExitCode)
		}
	})
}

// flood checks that RAWO messages arrive numbered without a gap, with the pattern they left with.
type flood struct {
	t    *testing.T
	next uint64
	size int
	bad  int
}

func (f *flood) handle(m shm.Message) monitor.Verdict {
	var number [8]byte
	copy(number[:], m.Payload)
	good := len(m.Payload) == f.size && binary.LittleEndian.Uint64(number[:]) == f.next
	for i := 8; i < len(m.Payload); i += 509 {
		good = good && m.Payload[i] == byte(i*7)
	}
	if !good {
		if f.bad++; f.bad < 10 {
			f.t.Errorf("message %d: %d bytes, %x…", f.next, len(m.Payload), m.Payload[:min(16, len(m.Payload))])
		}
	}
	f.next++
	return monitor.Continue
}

// affordable is how many of count messages a test has time for where the guest or the test is slow: under
// the race detector, on the emulator, and in the bed, which runs short tests. There, messages of which each fills the
// ring are fewer, for the guest and the monitor wait for each other at each of them.
func affordable(b vm.Backend, count, size int, ring uint64) int {
	const emulated = 256 << 20 // bytes
	slow := testing.Short() || testenv.Race || b.Name() == "emulator"
	switch {
	case slow && uint64(size) > ring/2:
		return min(count, 1_000)
	case testing.Short():
		return min(count, 5_000)
	case testenv.Race:
		return min(count, 50_000)
	case slow:
		return min(count, emulated/(size+1))
	}
	return count
}

func TestFlood(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		const gib = 1 << 30
		for _, tc := range []struct {
			count, size int
			ring        uint64
			memory      uint64
		}{
			{1_000_000, 24, 16 << 20, 0},
			{4 * gib / 4096, 4096, 16 << 20, 0},
			{100_000, 24, 8 << 10, 0},             // the smallest ring
			{100_000, 24, 16 << 20, 5 * gib},      // above 4 GiB
			{20_000, 4096, 1 << 20, 3*gib + 4096}, // a ring that takes all there is above 4 GiB
			{50, 1 << 20, 2 << 20, 0},             // the largest payloads
			{20_000, 8<<10 - 40 - 16, 8 << 10, 0}, // each fills the ring
			{1000, 0, 8 << 10, 0},
		} {
			t.Run(fmt.Sprintf("%dx%d in %d of %d", tc.count, tc.size, tc.ring, tc.memory), func(t *testing.T) {
				tc.count = affordable(m.Backend, tc.count, tc.size, tc.ring)
				f := &flood{t: t, size: tc.size}
				cfg := scenario(t, m, fmt.Sprintf("flood demo.count=%d demo.size=%d", tc.count, tc.size))
				cfg.VM.Memory, cfg.VM.Reserved = tc.memory, tc.ring
				cfg.Timeout = 5 * time.Minute
				if tc.size >= 8 {
					cfg.Handlers = func(x *monitor.Mux) { x.HandleFunc(shm.RawOutput, f.handle) }
				}
				r := does(t, cfg, run.Exited, 0)
				if tc.size >= 8 && f.next != uint64(tc.count) {
					t.Errorf("%d messages handled, want %d", f.next, tc.count)
				}
				if r.Ring.ByType["RAWO"] != uint64(tc.count) || r.Ring.Drops != 0 || r.Ring.CRCErrors != 0 ||
					r.Ring.FaultCount() != 0 {
					t.Errorf("%+v", r.Ring)
				}
			})
		}
	})
}

// A guest that does not wait for room: what arrives and what it counts as dropped is all there was.
func TestOverrun(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		const count = 300_000
		r := does(t, func() run.Config {
			cfg := scenario(t, m, fmt.Sprintf("overrun demo.count=%d demo.size=100", count))
			// However slow the guest is, it is faster than this.
			cfg.VM.Reserved, cfg.Poll = 8<<10, 200*time.Millisecond
			return cfg
		}(), run.Exited, 0)
		if r.Ring.Drops == 0 || r.Ring.ByType["RAWO"]+r.Ring.Drops != count {
			t.Errorf("%d arrived, %d dropped, %d sent", r.Ring.ByType["RAWO"], r.Ring.Drops, count)
		}
	})
}

func TestStall(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		cfg := scenario(t, m, "stall")
		cfg.Drive = func(_ context.Context, c shm.Control) error {
			time.Sleep(20 * time.Millisecond)
			c.RequestStall()
			return nil
		}
		does(t, cfg, run.Exited, 0)
	})
}

func TestSignalSlots(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		cfg := scenario(t, m, "signals")
		cfg.Drive = func(ctx context.Context, c shm.Control) error {
			v, err := c.WaitFor(ctx, shm.SlotGuest)
			if err == nil && v != shm.SignalProbesReady {
				err = fmt.Errorf("slot 1 is %d", v)
			}
			return errors.Join(err, c.Signal(shm.SlotHost, shm.SignalGo))
		}
		does(t, cfg, run.Exited, 0)
	})
}

func TestDriverFails(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		cfg := scenario(t, m, "signals")
		cfg.Drive = func(context.Context, shm.Control) error { return errors.New("no probe today") }
		r := does(t, cfg, run.Failed, 125)
		if !strings.Contains(r.Reason, "no probe today") {
			t.Error(r.Reason)
		}
		// One that still waits when the run ends does not hold it up, and is no failure.
		cfg = scenario(t, m, "fail")
		cfg.Drive = func(ctx context.Context, c shm.Control) error {
			_, err := c.WaitFor(ctx, shm.SlotGuest)
			return err
		}
		does(t, cfg, run.Exited, 3)
	})
}

// A guest that breaks the protocol, in a real machine: the lie is named, and an EXIT that is
// written after it is still seen. Without one the run is corrupt.
func TestHostileGuests(t *testing.T) {
	testenv.EachMachine(t, func(t *testing.T, m testenv.Machine) {
		for lie, kind := range map[string]string{
			"behind": "write_ptr_behind", "ahead": "write_ptr_ahead", "length": "bad_length", "incomplete": "incomplete",
			"header": "header_changed", "exit-payload": "bad_payload", "crc": "",
		} {
			for _, exit := range []string{"", " demo.exit=7"} {
				outcome, code := run.Corrupt, 123
				if exit != "" {
					outcome, code = run.Exited, 7
				}
				r := does(t, scenario(t, m, "hostile demo.lie="+lie+exit), outcome, code)
				if kind == "" {
					if r.Ring.CRCErrors != 1 {
						t.Errorf("%s: %+v", lie, r.Ring)
					}
					continue
				}
				if r.Ring.Faults[kind] == 0 || len(r.Faults) == 0 || r.Faults[0].Kind != kind {
					t.Errorf("%s: %+v, %v", lie, r.Ring.Faults, r.Faults)
				}
			}
		}
	})
}

func TestSetupFailures(t *testing.T) {
	for name, change := range map[string]func(*run.Config){
		"no KVM":      func(c *run.Config) { c.VM.Backend = kvm.Backend{Device: "/nonexistent"} },
		"no QEMU":     func(c *run.Config) { c.VM.Backend = qemu.Backend{Program: "/nonexistent"} },
		"no back end": func(c *run.Config) { c.VM.Backend = nil },
		"no kernel":   func(c *run.Config) { c.VM.Kernel = nil },
		"bad kernel":  func(c *run.Config) { c.VM.Kernel = x86.ELF{File: strings.NewReader("#!/bin/sh")} },
		"ring size":   func(c *run.Config) { c.VM.Reserved = 4096 },
	} {
		cfg := scenario(t, onX86(kvm.Backend{}), "ok")
		change(&cfg)
		r := run.Run(t.Context(), cfg)
		if r.Outcome != run.Failed || r.ExitCode != 125 || r.Reason == "" || r.ID == "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// stuck is a machine whose host kernel never lets it end, though its guest has said a word.
type stuck struct {
	memory *guestmem.Memory
	ring   *guestmem.Window
	done   chan struct{}
}

func (s *stuck) Memory() *guestmem.Memory { return s.memory }
func (s *stuck) Start() error {
	w, err := shm.NewWriter(s.ring)
	if err != nil {
		return err
	}
	return w.Write(shm.Stdout, []byte("out"))
}
func (s *stuck) Stop(error)                       {}
func (s *stuck) Done() <-chan struct{}            { return s.done }
func (s *stuck) Wait() error                      { <-s.done; return nil }
func (s *stuck) Bell() <-chan struct{}            { return nil }
func (s *stuck) Rings() uint64                    { return 0 }
func (s *stuck) Exits() iter.Seq2[string, uint64] { return func(func(string, uint64) bool) {} }
func (s *stuck) FirstExit() time.Time             { return time.Time{} }
func (s *stuck) Close() error                     { panic("its memory may still be in use") }

func TestStuckMachineIsGivenUp(t *testing.T) {
	t.Parallel()
	layout, err := x86.Board{}.Layout(16<<20, 8<<10)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := guestmem.New(guestmem.Region{Base: layout.Reserved.Base, Mem: make([]byte, 8<<10)})
	if err != nil {
		t.Fatal(err)
	}
	ring, err := memory.Window(layout.Reserved.Base, 8<<10)
	if err != nil {
		t.Fatal(err)
	}
	cfg := scenario(t, onX86(nil), "ok")
	cfg.VM.Memory, cfg.VM.Reserved = 16<<20, 8<<10
	cfg.Timeout, cfg.FlushLimit = 50*time.Millisecond, 50*time.Millisecond
	cfg.OnMessage = func(time.Duration, shm.Message) monitor.Verdict { return monitor.NotNow }
	cfg.NewMachine = func(vm.Config) (run.Machine, error) { return &stuck{memory, ring, make(chan struct{})}, nil }
	var l *run.Live
	cfg.OnLive = func(live *run.Live) { l = live }
	r := run.Run(t.Context(), cfg)
	if err := l.Stop(true); !errors.Is(err, run.ErrOver) {
		t.Errorf("it is asked to stop: %v", err)
	}
	if r.Outcome != run.Failed || !strings.Contains(r.Reason, "did not end") {
		t.Errorf("%s: %s", r.Outcome, r.Reason)
	}
	if r.Omitted.OutputBytes != 3 {
		t.Errorf("%d bytes of output are said to be left out, want 3", r.Omitted.OutputBytes)
	}
}
