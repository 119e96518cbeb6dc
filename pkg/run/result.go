package run

import (
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Result describes how a run went. What a guest can send without end is kept up to a limit; Omitted says how much more
// there was.
type Result struct {
	ID        string
	Name      string // as Config has it
	Kernel    string
	Suite     string // which the run is one of, or ""
	StartedAt time.Time
	Duration  time.Duration

	Host       Host
	Invocation Invocation

	Outcome       Outcome
	Reason        string // a sentence
	Err           error  // why the host could not go on, if Outcome is Failed
	ExitCode      int    // the process's
	GuestExitCode *int32 // the last CRC-good EXIT, or nil

	Arch        string // of the guest, as its board names it
	Accelerator string // the back end's name

	Topology  topology.Topology
	Pin       []int  // the host CPUs that the processors' threads were pinned to, or nil
	Memory    uint64 // bytes, the ring included
	RingBase  guestmem.Addr
	RingSize  uint64        // bytes
	FirstExit time.Duration // from StartedAt until the host first knew that the guest runs; 0 if it never did

	Ring          monitor.Stats
	Rings         uint64         // how often the guest rang its doorbell
	Faults        []Fault        // the first ones
	Scheduler     *Scheduler     // what the guest says of the scheduler under test, or nil
	DumpRequests  []DumpRequest  // the first ones
	SchedulerExit *SchedulerExit // the first CRC-good SCDX, or nil
	Crash         *string        // the first CRC-good CRSH, or a kernel's panic on the console, or nil
	Panicked      bool           // Crash is the end of Console
	Stimuli       []Stimulus
	TestResults   []TestResult
	Console       []byte     // the last 64 KiB
	ConsoleTimes  []LineTime // of some of its lines
	Stdout        Output     // of the command
	Stderr        Output
	Phases        []PhaseStart
	Events        []Event // in order: messages that are neither STIM nor TEST, and what the host found or did
	Omitted       Omitted
	RingImage     *RingImage // nil if Config.KeepRing is not set, or there was no machine

	Looks     []Look // at what the guest's CPUs were doing
	LookError error  // why there is none, or not of all of them
}

// describe fills in what a machine's configuration says of it.
func (r *Result) describe(cfg vm.Config) {
	if cfg.Kernel != nil {
		r.Arch = cfg.Kernel.Board().Arch()
	}
	if cfg.Backend != nil {
		r.Accelerator = cfg.Backend.Name()
	}
	if t, err := cfg.Topology.WithDefaults(); err == nil {
		r.Topology = t
	}
	r.Pin, r.Memory, r.RingSize = cfg.Pin, cfg.Memory, cfg.Reserved
	if r.Memory == 0 {
		r.Memory = vm.DefaultMemory
	}
	if r.RingSize == 0 {
		r.RingSize = vm.DefaultReserved
	}
}

// Stimulus is a STIM, and when the host read it, since StartedAt.
type Stimulus struct {
	At time.Duration
	shm.StimulusEvent
}

// TestResult is a TEST's payload as it came, and when the host read it, since StartedAt.
type TestResult struct {
	At      time.Duration
	Payload []byte
}

// LineTime is when a line of the console came, since StartedAt. Lines are counted from 0.
type LineTime struct {
	Line int
	At   time.Duration
}

// Output is what a command wrote.
type Output struct {
	Bytes uint64
	Tail  []byte // the last 64 KiB
}

// Fault is a breach of the ring's protocol.
type Fault struct{ Kind, Detail string }

// Omitted counts what a Result does not keep.
type Omitted struct {
	Faults, Stimuli, TestResults uint64 // after those that are kept
	DumpRequests, Events         uint64 // the same
	CrashBytes, ConsoleBytes     uint64 // after Crash, and before Console
	OutputBytes                  uint64 // of the guest's output, which had no reader
}

// What a Result keeps at most.
const (
	maxFaults          = 64
	maxStimuli         = 1 << 16
	maxTestResults     = 1 << 12
	maxTestResultBytes = 4 << 20
	maxCrashBytes      = 1 << 20
	maxConsoleBytes    = 64 << 10
	maxOutputTail      = 64 << 10
)
