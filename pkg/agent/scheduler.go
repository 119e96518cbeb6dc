package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// codeNotScheduler is the code of a scheduler that is not in charge and whose process has not ended:
// no process ends with it.
const codeNotScheduler = -1

const (
	// schedulerPoll is how often the kernel is asked whether the scheduler is in charge.
	schedulerPoll = 20 * time.Millisecond
	// A look is followed by a pause of so many times its own length, up to a limit: the agent has a real-time policy,
	// and on a slow machine it would leave no time to those whom it watches.
	pauseForLook = 16
	longestPause = 150 * time.Millisecond
	// schedulerWords is how much of a scheduler's output is kept to say what its last words were, in bytes.
	schedulerWords = 8 << 10
)

// scheduler is the scheduler under test, from before its start. A goroutine of its own watches it and sends what
// becomes of it; others ask it by channels.
type scheduler struct {
	*process
	a       *agent
	known   bool // the kernel says whether it is in charge
	log     *kernelLog
	files   *schedExtFiles
	tenure  tenure
	words   kernelWords
	output  words
	outputs sync.WaitGroup // goroutines that send its output

	phase    shm.SchedulerPhase // what its tenure came to at the last look
	last     shm.SchedulerState // what was sent
	lost     shm.SchedulerPhase // how it ended, before it was asked to go; 0: it has not
	asked    atomic.Bool        // to go
	killed   atomic.Bool        // for it did not
	survived atomic.Bool        // that, too
	deadline time.Time          // for becoming the scheduler

	up    chan struct{}      // closed when it is in charge
	looks chan chan struct{} // asks the watching goroutine for a look now
	over  chan struct{}      // closed when that has ended
}

// startScheduler starts the scheduler under test and returns when it is in charge, or it is known that it will not be.
// What ends it, or keeps it from that, is told to the host at once.
func (a *agent) startScheduler(ctx context.Context) (up bool, err error) {
	if len(a.job.Scheduler) == 0 {
		return true, nil
	}
	a.try(a.goRealTime())
	s := &scheduler{
		a: a, output: words{limit: schedulerWords},
		up: make(chan struct{}), looks: make(chan chan struct{}), over: make(chan struct{}),
	}
	before, known := a.readSchedExt()
	if s.known = known; known {
		s.tenure.before = before.enableSeq
		if s.log, err = openKernelLog(a.path(logDevice)); err != nil {
			a.complain(err)
		} else {
			a.try(s.log.setClock(a.path(logDevice)))
		}
		if s.files, err = a.openSchedExt(); err != nil {
			return false, err
		}
		a.watchDumps(ctx)
	}
	if err := s.start(ctx); err != nil {
		s.process = &process{}
		s.end(ctx, shm.SchedulerRefused, startCode(err), fmt.Sprintf("could not be started: %v", err))
		s.closeFiles()
		return false, nil
	}
	a.scheduler = s
	loading := a.state(schedExt{phase: shm.SchedulerLoading, ops: before.ops, enableSeq: before.enableSeq})
	if !known {
		loading.Reason = "the kernel says nothing of sched_ext, so only the scheduler's process is watched"
		a.complain(errors.New(loading.Reason))
	}
	s.send(ctx, loading)
	a.background(func() { s.watch(ctx) })
	select {
	case <-s.up:
		return true, nil
	case <-s.over:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// start starts the scheduler's process, in a session of its own, by which its processes are told from the command's.
func (s *scheduler) start(ctx context.Context) error {
	a := s.a
	p := program{
		args: a.job.Scheduler, env: a.environment(), dir: a.path("/"), sys: unix.SysProcAttr{Setsid: true},
	}
	for _, o := range []struct {
		file   **os.File
		stream shm.OutputStream
	}{{&p.stdout, shm.OutputStdout}, {&p.stderr, shm.OutputStderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		*o.file = w
		s.outputs.Add(1)
		a.background(func() {
			defer s.outputs.Done()
			s.forward(ctx, r, o.stream)
		})
	}
	child, err := a.reaper.start(&p)
	s.process = child
	return err
}

// forward sends what the scheduler writes, until nobody can write any more or ctx ends.
func (s *scheduler) forward(ctx context.Context, r *os.File, stream shm.OutputStream) {
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer r.Close()
	defer stop()
	buf := make([]byte, min(outputChunk, s.a.chunk()))
	for {
		n, err := r.Read(buf)
		if n > 0 {
			s.output.Write(buf[:n])
			p := shm.OutputPiece{Stream: stream, Text: buf[:n]}
			if err := s.a.writer.WriteWait(ctx, shm.SchedulerOutput, p.Encode()); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				s.a.complain(err)
			}
			return
		}
	}
}

// watch looks at the scheduler again and again, until its end is known or ctx ends. Where the kernel does not say
// whether it is in charge, it is when it has lived for a time.
func (s *scheduler) watch(ctx context.Context) {
	defer close(s.over)
	defer s.closeFiles()
	s.deadline = time.Now().Add(s.a.schedulerWait())
	if !s.known {
		s.deadline = time.Now().Add(s.a.limits.schedulerSettles)
	}
	for took := time.Duration(0); ctx.Err() == nil; {
		pause(ctx, took)
		start := time.Now()
		var asked chan struct{}
		select {
		case asked = <-s.looks:
		default:
		}
		over := s.look(ctx)
		took = time.Since(start)
		if asked != nil {
			close(asked)
		}
		if over {
			return
		}
	}
}

// pause waits for the next look's time, when a look took so long. It is a timer's wait, not one in poll(2) for the
// kernel's log: Go's runtime looks after a thread in a system call again and again, which costs more than all looks.
func pause(ctx context.Context, took time.Duration) {
	select {
	case <-time.After(max(schedulerPoll, min(pauseForLook*took, longestPause))):
	case <-ctx.Done():
	}
}

// look sends what has changed, and reports whether the scheduler is gone.
func (s *scheduler) look(ctx context.Context) (gone bool) {
	if s.log != nil {
		s.log.read(s.words.hear)
	}
	phase, reason := s.phase, ""
	if now, ok := s.changed(); ok {
		phase, reason = s.tenure.see(now)
		s.phase = phase
		if now.phase != s.last.Phase && now.enableSeq != s.tenure.before || now.phase == shm.SchedulerEnabling {
			s.sendOnce(ctx, now)
		}
	}
	ended := s.ends(0)
	switch {
	case s.asked.Load():
		return s.goes(ctx, phase, ended)
	case phase == shm.SchedulerLost || phase == shm.SchedulerReplaced:
		return s.conclude(ctx, phase, reason)
	case ended:
		return s.conclude(ctx, s.unready(shm.SchedulerLost), "")
	case phase == shm.SchedulerEnabled, !s.known && time.Now().After(s.deadline):
		s.ready()
	case s.words.thrownOut() && !s.tenure.enabled:
		return s.conclude(ctx, shm.SchedulerRefused, "")
	case !s.tenure.enabled && time.Now().After(s.deadline):
		return s.conclude(ctx, shm.SchedulerRefused, s.notYet(fmt.Sprintf("within %v", s.a.schedulerWait())))
	case !s.isUp() && s.a.isStopping():
		return s.conclude(ctx, shm.SchedulerRefused, s.notYet("before the run was to end"))
	}
	return false
}

// notYet says that the scheduler did not become one.
func (s *scheduler) notYet(when string) string {
	return fmt.Sprintf("did not become the scheduler %s: %s is %q%s", when, schedExtState,
		s.a.kernelSays(schedExtState), s.output.last())
}

// changed returns what the kernel says of sched_ext, where that may be something else than at the last look.
func (s *scheduler) changed() (now schedExt, ok bool) {
	if !s.known || !s.files.changed() {
		return now, false
	}
	if now, ok = s.a.readSchedExt(); ok {
		s.files.seen()
	}
	return now, ok
}

// goes looks at a scheduler that was asked to go. Going is what it was asked to; but the kernel may throw it out
// before it does.
func (s *scheduler) goes(ctx context.Context, phase shm.SchedulerPhase, ended bool) (gone bool) {
	if ended && s.log != nil {
		s.log.read(s.words.hear)
	}
	if s.words.thrownOut() && (phase == shm.SchedulerLost || ended) {
		return s.conclude(ctx, shm.SchedulerLost, "")
	}
	if s.survived.Load() {
		return s.conclude(ctx, shm.SchedulerLost, fmt.Sprintf("was killed, and has not ended in %v: %s is %q", schedulerKill,
			schedExtState, s.a.kernelSays(schedExtState)))
	}
	if !ended {
		return false
	}
	s.awaitOutput(lastWordsLimit)
	reason := endText(s.status)
	if code := shellCode(s.status); code != 0 && code != codeSignalled+int(unix.SIGTERM) && !s.killed.Load() {
		return s.conclude(ctx, shm.SchedulerLost, reason+" when it was asked to go"+s.output.last())
	}
	if s.killed.Load() {
		reason = fmt.Sprintf("ignored a TERM for %v and was killed; it %s", s.a.schedulerTerm(), reason)
	}
	s.sendEnd(ctx, shm.SchedulerLeft, reason)
	return true
}

// sendOnce sends a state of sched_ext that was not the last one.
func (s *scheduler) sendOnce(ctx context.Context, now schedExt) {
	if now.phase == s.last.Phase && now.enableSeq == s.last.EnableSeq {
		return
	}
	state := s.a.state(now)
	if now.phase == shm.SchedulerDisabled || now.phase == shm.SchedulerDisabling {
		state.Noticed, state.Reason = s.words.noticed, s.words.reason
	}
	s.send(ctx, state)
}

func (s *scheduler) send(ctx context.Context, state shm.SchedulerState) {
	state.PID = int32(s.pid)
	s.last = state
	s.a.try(s.a.writer.WriteWait(ctx, shm.SchedulerChange, state.Encode()))
}

func (s *scheduler) ready() {
	if !s.isUp() {
		close(s.up)
	}
}

// isUp reports whether the scheduler has been in charge.
func (s *scheduler) isUp() bool {
	select {
	case <-s.up:
		return true
	default:
		return false
	}
}

// unready returns phase where the scheduler has been in charge, and SchedulerRefused where it has not.
func (s *scheduler) unready(phase shm.SchedulerPhase) shm.SchedulerPhase {
	if s.isUp() {
		return phase
	}
	return shm.SchedulerRefused
}

// How long the end of a scheduler is looked into, before it is told to the host.
const (
	// wordsLimit is how long the kernel may take to say why it throws a scheduler out.
	wordsLimit = 2 * time.Second
	// stepDownLimit is how long a process may take to end that was the scheduler and gave that up.
	stepDownLimit = 2 * time.Second
	// lastWordsLimit is how long the process of another may take, and how long output may take to come.
	lastWordsLimit = 100 * time.Millisecond
	// schedulerKill is how long the kernel may take to end a process that was killed: it takes the scheduler out first.
	schedulerKill = 5 * time.Second
)

// conclude tells the host how the scheduler ended, with all that is known of it: the kernel's words come after its
// state, the process's end after both. It returns true.
func (s *scheduler) conclude(ctx context.Context, phase shm.SchedulerPhase, reason string) bool {
	if s.tenure.enabled && s.log != nil && phase != shm.SchedulerReplaced {
		s.awaitWords(ctx)
	}
	code := codeNotScheduler
	patience := lastWordsLimit
	if s.words.reason == unregisteredByUser {
		patience = stepDownLimit
	}
	if s.ends(s.a.shortened(patience)) {
		code = shellCode(s.status)
		s.awaitOutput(lastWordsLimit)
	}
	if s.log != nil {
		s.log.read(s.words.hear)
	}
	if reason == "" {
		reason = s.why(phase)
	}
	s.end(ctx, phase, code, reason)
	return true
}

// awaitWords waits for what the kernel says of the scheduler's end: two lines, of which it may leave out the second. It
// has said all when its state is "disabled".
func (s *scheduler) awaitWords(ctx context.Context) {
	for end := time.Now().Add(s.a.shortened(wordsLimit)); time.Now().Before(end) && ctx.Err() == nil; {
		disabled := s.a.kernelSays(schedExtState) == "disabled"
		s.log.read(s.words.hear)
		if s.words.reason != "" && (s.words.detail != "" || disabled) {
			return
		}
		pause(ctx, 0)
	}
}

// why says how the scheduler ended: what the kernel says first, then what its process says.
func (s *scheduler) why(phase shm.SchedulerPhase) string {
	process := "its process lives"
	ended := s.ends(0)
	if ended {
		process = "its process " + endText(s.status)
	}
	switch {
	case s.words.reason != "" && s.words.reason != unregisteredByUser:
		return fmt.Sprintf("was disabled by the kernel %v; %s", s.words, process)
	case !ended && s.words.reason != "":
		return fmt.Sprintf("is not the scheduler any more, though its process lives: %v", s.words)
	case !ended:
		return fmt.Sprintf("is not the scheduler any more, though its process lives: %s is %q", schedExtState,
			s.a.kernelSays(schedExtState))
	case phase == shm.SchedulerRefused && s.known:
		return endText(s.status) + " before it was the scheduler" + s.output.last()
	}
	return endText(s.status) + s.output.last()
}

// endText is the end of a process, as the end of a sentence.
func endText(s unix.WaitStatus) string {
	if s.Signaled() {
		return fmt.Sprintf("exited with code %d (%s)", shellCode(s), unix.SignalName(s.Signal()))
	}
	return fmt.Sprintf("exited with code %d", shellCode(s))
}

// end tells the host, once, that the scheduler is gone: a last state with the reason, and then a code as a shell gives
// them, at which the host ends the run.
func (s *scheduler) end(ctx context.Context, phase shm.SchedulerPhase, code int, reason string) {
	if s.lost != 0 {
		return
	}
	s.lost = phase
	s.sendEnd(ctx, phase, reason)
	s.a.complain(errors.New("the scheduler under test " + reason))
	payload := shm.EncodeCode(int32(code))
	s.a.try(s.a.writer.WriteWait(ctx, shm.SchedulerExit, payload[:]))
}

// sendEnd sends the last state, and what was not sent of a dump.
func (s *scheduler) sendEnd(ctx context.Context, phase shm.SchedulerPhase, reason string) {
	now, _ := s.a.readSchedExt()
	state := s.a.state(now)
	state.Phase, state.Noticed, state.Reason = phase, s.words.noticed, reason
	s.send(ctx, state)
	if d := s.a.dumps.Load(); d != nil {
		d.flush(ctx)
	}
}

func (s *scheduler) closeFiles() {
	if s.log != nil {
		s.log.close()
	}
	if s.files != nil {
		s.files.close()
	}
}

// ends reports whether the scheduler's process ends, waiting for that at most for d.
func (s *scheduler) ends(d time.Duration) bool {
	select {
	case <-s.ended:
		return true
	default:
	}
	if d == 0 {
		return false
	}
	select {
	case <-s.ended:
		return true
	case <-time.After(d):
		return false
	}
}

// awaitOutput waits until the scheduler's output was sent, at most for d: who has its descriptors may live on.
func (s *scheduler) awaitOutput(d time.Duration) {
	sent := make(chan struct{})
	s.a.background(func() {
		s.outputs.Wait()
		close(sent)
	})
	select {
	case <-sent:
	case <-time.After(d):
	}
}

// lookNow returns when the scheduler was looked at, from now on, or its end is known.
func (s *scheduler) lookNow(ctx context.Context) {
	looked := make(chan struct{})
	select {
	case s.looks <- looked:
	case <-s.over:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-looked:
	case <-s.over:
	case <-ctx.Done():
	}
}

// dismissScheduler sees to it that a scheduler which is gone at the run's end is told to be; one that is in place is
// asked to go, and ended if it does not.
func (a *agent) dismissScheduler(ctx context.Context) {
	s := a.scheduler
	if s == nil {
		return
	}
	s.ends(a.limits.schedulerSettles) // one that ended with the command
	a.reaper.reap()
	s.lookNow(ctx)
	select {
	case <-s.over:
		return
	default:
	}
	s.asked.Store(true)
	_ = s.signalGroup(unix.SIGTERM)
	if !s.ends(a.schedulerTerm()) {
		s.killed.Store(true)
		_ = s.signalGroup(unix.SIGKILL)
		s.survived.Store(!s.ends(schedulerKill))
	}
	select {
	case <-s.over:
	case <-ctx.Done():
	}
}

// schedulerWait is how long the scheduler may take to be in charge.
func (a *agent) schedulerWait() time.Duration {
	if a.job.SchedulerWait > 0 {
		return a.job.SchedulerWait
	}
	return a.limits.schedulerUp
}

// schedulerTerm is how long it has from a TERM to a KILL.
func (a *agent) schedulerTerm() time.Duration { return a.shortened(a.limits.schedulerTerm) }

// shortened is how long something may take at the run's end: less where the host waits.
func (a *agent) shortened(d time.Duration) time.Duration {
	if a.isStopping() {
		return d / 4
	}
	return d
}

func (a *agent) isStopping() bool {
	select {
	case <-a.stopping:
		return true
	default:
		return false
	}
}

// kernelSays is what a file of the kernel's has, "" where there is none.
func (a *agent) kernelSays(path string) string {
	text, _ := os.ReadFile(a.path(path))
	return strings.TrimSpace(string(text))
}
