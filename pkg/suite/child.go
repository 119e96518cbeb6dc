package suite

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

const (
	// maxOutput is how much of each of a run's two outputs is kept, in bytes.
	maxOutput = 64 << 20
	// DefaultOverdue is how long after its deadline, or its grace when it was asked to stop, a run's process is killed.
	DefaultOverdue = 30 * time.Second
	// maxRunReport bounds a run's report, in bytes.
	maxRunReport = 64 << 20
	// tailLines and tailBytes are how much of a console, or of what the program said, a suite's report keeps.
	tailLines = 20
	tailBytes = 2 << 10
)

// The files of a run's folder.
const (
	runReport  = "report.json"
	runConsole = "console.log"
	runRing    = "ring.img"
	runMetrics = "metrics.prom"
	runStdout  = "stdout.log"
	runStderr  = "stderr.log"
	runCommand = "command.sh"
)

// child is a process that does a run.
type child struct {
	run     *Run
	program string
	args    []string
	env     []string
	dir     string         // of its files
	stop    chan os.Signal // what it is to get
	overdue time.Duration
	reading *sync.Mutex // held while a report is read

	stderr string // the end of what it said
	kept   error  // why not all of its output is in its files
}

// ended is what is known of a process when it is over.
type ended struct {
	child *child
	Attempt
	status Status         // Passed, Failed or Lost
	killed syscall.Signal // that ended the process, or 0
	tail   []string
}

// do does the run and judges how it ended. Signals go to the process as they come.
func (c *child) do() ended {
	e := ended{child: c}
	start := time.Now()
	e.StartedAt = &start
	state, late, err := c.process()
	e.Duration = time.Since(start).Seconds()
	if err != nil {
		e.status, e.Outcome, e.Reason = Failed, run.Failed, err.Error()
		return e
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	e.judge(state, late)
	if c.kept != nil {
		e.Reason += fmt.Sprintf("; its output was not kept whole: %v", c.kept)
	}
	return e
}

// process starts the process, and waits for its end. Late says that it had to be killed, and why.
func (c *child) process() (state *os.ProcessState, late string, err error) {
	// The kernel sends the signal for a parent's death when the thread ends that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stdout, err := os.Create(filepath.Join(c.dir, runStdout))
	if err != nil {
		return nil, "", err
	}
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(c.dir, runStderr))
	if err != nil {
		return nil, "", err
	}
	defer stderr.Close()
	cmd := exec.Command(c.program, c.args...)
	cmd.Env = c.env
	out, errOut := &capped{w: stdout, left: maxOutput}, &capped{w: stderr, left: maxOutput}
	cmd.Stdout, cmd.Stderr = out, errOut
	// A group of its own keeps a terminal's signals away: the suite passes them on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = c.overdue // for who has inherited its output
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { late = c.watch(cmd.Process, done) })
	err = cmd.Wait()
	close(done)
	watch.Wait()
	_, lost := out.seen()
	said, alsoLost := errOut.seen()
	c.stderr, c.kept = said, errors.Join(lost, alsoLost)
	if state = cmd.ProcessState; state == nil {
		return nil, "", err
	}
	if state.ExitCode() < 0 { // what it has started does not outlive it
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return state, late, nil
}

// watch passes signals on until the process is done. It kills one that is overdue and says why.
func (c *child) watch(p *os.Process, done <-chan struct{}) (late string) {
	limit := c.run.Timeout + c.overdue
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return late
		case sig := <-c.stop:
			_ = p.Signal(sig) // it may be over
			limit = c.run.Grace + c.overdue
			timer.Reset(limit)
		case <-timer.C:
			late = fmt.Sprintf("it did not end within %v and was killed", limit)
			_ = syscall.Kill(-p.Pid, syscall.SIGKILL)
		}
	}
}

// capped writes so much, and drops the rest. It never fails: the process is to go on. If the disk stalls, a Write may
// still wait for it when the process is given up; what is known is known all the same.
type capped struct {
	w    io.Writer
	left int // bytes

	mu  sync.Mutex // not held while w writes
	err error      // the first that w had
	end []byte     // the last bytes that there were
}

func (c *capped) Write(p []byte) (int, error) {
	var err error
	if n := min(len(p), c.left); n > 0 {
		c.left -= n
		_, err = c.w.Write(p[:n])
	}
	if err != nil {
		c.left = 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = cmp.Or(c.err, err)
	c.end = append(c.end, p[max(0, len(p)-tailBytes):]...)
	c.end = c.end[max(0, len(c.end)-tailBytes):]
	return len(p), nil
}

// seen returns the last bytes that there were, and the first error.
func (c *capped) seen() (end string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.end), c.err
}

// ranReport is what a suite takes from a run's report.
type ranReport struct {
	Outcome     run.Outcome
	ExitCode    int
	Reason      string
	Arch        string
	Accelerator string
	Ring        struct {
		Messages uint64 `json:"messages"`
		Drops    uint64 `json:"drops"`
	}
	Last struct { // of the stimuli
		ElapsedMS       uint32 `json:"elapsed_ms"`
		TotalIterations uint64 `json:"total_iterations"`
	}
	Crash *struct {
		Message string `json:"message"`
	}
	ConsoleTail string
}

// judge compares how the process ended, and its report, with what was expected.
func (e *ended) judge(state *os.ProcessState, late string) {
	c := e.child
	said := lastLines(c.stderr)
	r, err := readRunReport(filepath.Join(c.dir, runReport))
	if r != nil {
		e.Outcome, e.Reason, e.Arch, e.Accelerator = r.Outcome, r.Reason, r.Arch, r.Accelerator
		e.Messages, e.Drops = r.Ring.Messages, r.Ring.Drops
		e.Iterations, e.IterationsMS = r.Last.TotalIterations, r.Last.ElapsedMS
		e.tail = lastLines(r.ConsoleTail)
		if len(e.tail) == 0 && r.Crash != nil {
			e.tail = lastLines(r.Crash.Message)
		}
	}
	if len(e.tail) == 0 {
		e.tail = said
	}
	code := state.ExitCode()
	if code < 0 {
		e.status, e.Outcome = Lost, ""
		if status, ok := state.Sys().(syscall.WaitStatus); ok {
			e.killed = status.Signal()
		}
		e.Reason = late
		if late == "" {
			e.Reason = fmt.Sprintf("its process ended by a signal: %v", state)
		}
		return
	}
	e.ExitCode = &code
	want := c.run.Expect
	switch {
	case code == run.CodeFailed && (r == nil || r.ExitCode != code): // what it said last is why
		e.Outcome, e.Reason = run.Failed, fmt.Sprintf("the program failed: %v", err)
		if len(said) > 0 {
			e.Reason = strings.TrimPrefix(said[len(said)-1], "ktstr-vmm: ")
		}
		if e.status = Failed; want.matches(e.Outcome, code) {
			e.status = Passed
		}
	case r == nil:
		e.status = Lost
		e.Reason = fmt.Sprintf("its process ended with exit code %d and left no report: %v", code, err)
	case want.matches(e.Outcome, code):
		e.status = Passed
	default:
		e.status = Failed
	}
}

// matches reports whether a run ended as was expected.
func (e Expect) matches(outcome run.Outcome, code int) bool {
	return outcome == e.Outcome && (e.ExitCode == nil || code == *e.ExitCode)
}

// String says what is expected.
func (e Expect) String() string {
	if e.ExitCode == nil {
		return string(e.Outcome)
	}
	return fmt.Sprintf("%s with code %d", e.Outcome, *e.ExitCode)
}

var errNoOutcome = errors.New("it has no outcome")

// readRunReport reads a run's report value by value: it may have many that are not needed here.
func readRunReport(path string) (*ranReport, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &ranReport{}
	fields := map[string]any{"outcome": &r.Outcome, "exit_code": &r.ExitCode, "reason": &r.Reason, "arch": &r.Arch,
		"accelerator": &r.Accelerator, "ring": &r.Ring, "crash": &r.Crash, "console_tail": &r.ConsoleTail}
	d := json.NewDecoder(bufio.NewReader(io.LimitReader(f, maxRunReport)))
	if err := delimiter(d, '{'); err != nil {
		return nil, err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := key.(string)
		switch {
		case name == "stimuli":
			err = elements(d, &r.Last)
		case name == "results":
			err = elements(d, new(json.RawMessage))
		case fields[name] != nil:
			err = d.Decode(fields[name])
		default:
			err = d.Decode(new(json.RawMessage))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := delimiter(d, '}'); err != nil {
		return nil, err
	}
	if r.Outcome == "" {
		return nil, errNoOutcome
	}
	return r, nil
}

func delimiter(d *json.Decoder, want json.Delim) error {
	got, err := d.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%v, where %v is expected", got, want)
	}
	return err
}

// elements decodes the elements of an array to one place, one after the other.
func elements(d *json.Decoder, to any) error {
	if err := delimiter(d, '['); err != nil {
		return err
	}
	for d.More() {
		if err := d.Decode(to); err != nil {
			return err
		}
	}
	return delimiter(d, ']')
}

// lastLines returns the last lines of a text that have something to say.
func lastLines(text string) []string {
	text = strings.ToValidUTF8(text[max(0, len(text)-tailBytes):], "")
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRightFunc(line, unicode.IsSpace); line != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-tailLines):]
}
