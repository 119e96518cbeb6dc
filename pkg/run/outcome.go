package run

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Outcome is how a run ended, in one word.
type Outcome string

// The outcomes.
const (
	Exited        Outcome = "exited"
	NoVerdict     Outcome = "no_verdict"
	SchedulerGone Outcome = "scheduler_exit"
	Crashed       Outcome = "crash"
	Corrupt       Outcome = "corrupt"
	TimedOut      Outcome = "timeout"
	Failed        Outcome = "error"
	Interrupted   Outcome = "interrupted"
)

// Outcomes returns all outcomes.
func Outcomes() []Outcome {
	return []Outcome{Exited, NoVerdict, SchedulerGone, Crashed, Corrupt, TimedOut, Failed, Interrupted}
}

// Exit codes of outcomes that are not the guest's own.
const (
	CodeNoVerdict     = 120
	CodeSchedulerGone = 121
	CodeCrashed       = 122
	CodeCorrupt       = 123
	CodeTimedOut      = 124
	CodeFailed        = 125
	codeSignalled     = 128 // plus the signal's number

	// codeOutOfRange stands for a guest's exit code that is no exit code of a process (0 to
	// 255): passing on its low byte could turn a failure into a 0.
	codeOutOfRange = 255
)

// Evidence is everything that decides the outcome.
type Evidence struct {
	Err           error          // the host could not go on
	Signal        os.Signal      // SIGINT, SIGTERM or the request of a Live came, or nil
	Crash         *string        // the text of a CRC-good CRSH, or a kernel panic on the console
	SchedulerExit *SchedulerExit // the first CRC-good SCDX
	TimedOut      string         // which deadline passed, or ""
	Faults        uint64         // breaches of the ring's protocol
	CRCErrors     uint64         // messages that arrived damaged
	GuestExit     *int32         // the last CRC-good EXIT
	OutputLost    uint64         // bytes of the guest's output that had no reader
	GuestEnd      error          // why the machine ended, if the guest ended it
}

// Decide returns the outcome of a run, the process's exit code, and the reason as a sentence. If several things
// happened, the one that comes first below counts.
func Decide(e Evidence) (Outcome, int, string) {
	switch {
	case e.Err != nil:
		return Failed, CodeFailed, e.Err.Error()
	case e.Signal != nil:
		return Interrupted, signalCode(e.Signal),
			fmt.Sprintf("the run was interrupted by %s%s", SignalName(e.Signal), e.guestSaid())
	case e.Crash != nil:
		return Crashed, CodeCrashed, "the guest crashed" + crashLine(*e.Crash) + e.guestSaid()
	case e.SchedulerExit != nil:
		return SchedulerGone, CodeSchedulerGone,
			fmt.Sprintf("the scheduler under test %v%s", e.SchedulerExit, e.guestSaid())
	case e.TimedOut != "":
		return TimedOut, CodeTimedOut, e.TimedOut + e.guestSaid()
	case e.GuestExit == nil && e.Faults+e.CRCErrors > 0:
		return Corrupt, CodeCorrupt,
			fmt.Sprintf("the ring broke the protocol (%d faults, %d damaged messages) and no EXIT could be read", e.Faults,
				e.CRCErrors)
	case e.GuestExit != nil && e.OutputLost > 0:
		return Failed, CodeFailed,
			fmt.Sprintf("the guest exited with code %d, but %d bytes of its output had no reader", *e.GuestExit, e.OutputLost)
	case e.GuestExit != nil:
		return Exited, exitCode(*e.GuestExit), fmt.Sprintf("the guest exited with code %d", *e.GuestExit)
	case e.GuestEnd != nil:
		return NoVerdict, CodeNoVerdict, fmt.Sprintf("no EXIT was seen: %v", e.GuestEnd)
	}
	return NoVerdict, CodeNoVerdict, "the machine ended and no EXIT was seen"
}

var leadingTimeStamp = regexp.MustCompile(`^` + timeStamp)

// crashLine adds the first line of a crash's text, up to a length.
func crashLine(text string) string {
	const most = 160 // runes
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	line = leadingTimeStamp.ReplaceAllString(strings.TrimSpace(line), "")
	if line == "" {
		return ""
	}
	if runes := []rune(line); len(runes) > most {
		line = string(runes[:most]) + "…"
	}
	return ": " + line
}

// guestSaid adds the guest's exit code to a reason that takes precedence over it.
func (e Evidence) guestSaid() string {
	if e.GuestExit == nil {
		return ""
	}
	return fmt.Sprintf("; the guest exited with code %d", *e.GuestExit)
}

func exitCode(guest int32) int {
	if guest < 0 || guest > 255 {
		return codeOutOfRange
	}
	return int(guest)
}

// SignalName is what a signal is called: SIGINT, not the "interrupt" of its String.
func SignalName(s os.Signal) string {
	if n, ok := s.(syscall.Signal); ok {
		if name := unix.SignalName(n); name != "" {
			return name
		}
	}
	return s.String()
}

func signalCode(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return codeSignalled + int(n)
	}
	if s == (stopRequest{}) {
		return codeSignalled + int(syscall.SIGTERM)
	}
	return codeSignalled + int(syscall.SIGINT)
}
