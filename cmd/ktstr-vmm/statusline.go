package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

const (
	// statusAfter is how old a run is before it has a status line: most are over before anybody could read it.
	statusAfter  = 500 * time.Millisecond
	statusPeriod = 200 * time.Millisecond
	// statusPause is how long after it was drawn the line is drawn anew at once behind what was written over it. A
	// terminal that scrolls fast has it only once in a statusPeriod.
	statusPause = 50 * time.Millisecond
	// ratePeriod is over which time messages a second are counted.
	ratePeriod = time.Second
	// aliveEvery is how often a run says in a log that it goes on.
	aliveEvery = 30 * time.Second

	// statusEndLimit is how long a terminal that is stuck holds up what is to be done at a run's end.
	statusEndLimit = lastWordsLimit / 4

	minStatusColumns = 20
)

// statusLine is a line at the end of a terminal that says how a run stands. All that is written to the terminal goes
// through it: the line is taken away before, and comes back where the output is at the start of a line. No region of
// the screen is reserved for it and no cursor is saved: both would be lost to a command that does the same, to a
// terminal that changes its size, or to a kill.
//
// The cursor is left at the line's start. So to erase the line is to erase all from the cursor on, which is right, too,
// where a terminal that got narrower has made two lines of it.
type statusLine struct {
	terminal io.Writer
	size     func() (columns, rows int)
	ours     func() bool // whether the terminal is for us to write to
	stop     chan struct{}
	ended    chan struct{} // nil: it was not started

	mu     sync.Mutex // held while the terminal is written to, which may take for ever
	output outputState
	text   string // what it says; "" before there is something
	drawn  time.Time
	there  bool // it is on the screen
	over   bool
}

// newStatusLine returns a status line for a terminal.
func newStatusLine(terminal *os.File) *statusLine {
	return &statusLine{
		terminal: terminal,
		size:     func() (int, int) { return terminalSize(terminal) },
		ours:     func() bool { return foreground(terminal) },
		stop:     make(chan struct{}),
		output:   newOutputState(),
	}
}

// above returns what to write to instead of w, which is the same terminal.
func (l *statusLine) above(w io.Writer) io.Writer { return aboveStatus{l, w} }

type aboveStatus struct {
	line *statusLine
	w    io.Writer
}

// Write implements io.Writer.
func (a aboveStatus) Write(p []byte) (int, error) {
	l := a.line
	l.mu.Lock()
	defer l.mu.Unlock()
	l.erase()
	n, err := a.w.Write(p)
	l.output.add(p[:n])
	if err == nil && time.Since(l.drawn) >= statusPause {
		l.draw()
	}
	return n, err
}

// erase takes the line away. Where a shell has taken the terminal, its prompt is where the line was.
func (l *statusLine) erase() {
	if l.there && l.ours() {
		// All lines from here on are deleted. To erase the screen from here on does the same, but at a screen's first place
		// tmux puts into its history what it erases.
		_, _ = io.WriteString(l.terminal, "\r\x1b[999M") // what follows meets the same error
	}
	l.there = false
}

// draw draws the line, over the one that is there, if this is the place and the time for it.
func (l *statusLine) draw() {
	columns, rows := l.size()
	if l.over || l.text == "" || !l.output.lineStart() || columns < minStatusColumns || rows < 2 || !l.ours() {
		l.erase()
		return
	}
	text := l.text[:min(len(l.text), columns-1)] // all of it is ASCII
	// Without wrapping, for the terminal may have become narrower since it was asked.
	_, err := fmt.Fprintf(l.terminal, "\r\x1b[?7l%s\x1b[?7h\x1b[J\r", text)
	l.there, l.drawn = err == nil, time.Now()
}

// say changes what the line says. It does not wait for a terminal that is being written to.
func (l *statusLine) say(text func(columns int) string) {
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	columns, _ := l.size()
	l.text = text(columns - 1)
	l.draw()
}

// follow says how a run stands, until end is called.
func (l *statusLine) follow(live *run.Live) {
	l.ended = make(chan struct{})
	suspend := make(chan os.Signal, 1)
	if !signal.Ignored(unix.SIGTSTP) {
		signal.Notify(suspend, unix.SIGTSTP)
	}
	go func() {
		defer close(l.ended)
		defer signal.Stop(suspend)
		ticks := time.NewTicker(statusPeriod)
		defer ticks.Stop()
		for rate := (rate{}); ; {
			select {
			case <-l.stop:
				l.hide() // a terminal that is stuck has no line to be taken away, and may keep this for ever
				return
			case <-suspend:
				l.suspend()
			case <-ticks.C:
				s := live.Status()
				rate.add(s)
				if s.Elapsed >= statusAfter {
					l.say(func(columns int) string { return statusText(s, rate, columns) })
				}
			}
		}
	}()
}

// suspend does what Ctrl-Z asks for, without the line, which would be left above the shell's prompt. Go does not give
// SIGTSTP its default action back, and SIGTTOU has the same: to stop, unless there is no shell that could continue us.
func (l *statusLine) suspend() {
	if l.mu.TryLock() { // a terminal that is stuck shows no line anew
		defer l.mu.Unlock()
		l.erase()
	}
	runtime.LockOSThread() // the signal comes before Tgkill returns
	defer runtime.UnlockOSThread()
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGTTOU) // who is not stopped goes on
}

// hide takes the line away for good.
func (l *statusLine) hide() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.erase()
}

// end takes the line away for good, unless the terminal takes longer than a limit for that.
func (l *statusLine) end(limit time.Duration) {
	if l == nil || l.ended == nil {
		return
	}
	close(l.stop)
	select {
	case <-l.ended:
	case <-time.After(limit):
	}
}

// rate counts messages a second.
type rate struct {
	at       time.Duration
	messages uint64
	second   float64
}

func (r *rate) add(s run.Status) {
	if took := s.Elapsed - r.at; took >= ratePeriod {
		r.second = float64(s.Ring.Messages-r.messages) / took.Seconds()
		r.at, r.messages = s.Elapsed, s.Ring.Messages
	}
}

// statusText says how a run stands in so many columns, and leaves out at the end what has no room. Of what a guest
// writes it has nothing but numbers.
func statusText(s run.Status, r rate, columns int) string {
	parts := []string{
		fmt.Sprintf("%-9s", s.Phase),
		fmt.Sprintf("%v of %v", s.Elapsed.Truncate(time.Second), s.Timeout),
		fmt.Sprintf("%.0f messages/s", r.second),
		fmt.Sprintf("%d drops", s.Ring.Drops),
	}
	if last := s.LastStimulus; last != nil {
		parts = append(parts, fmt.Sprintf("STIM step %d at %d ms", last.StepIndex, last.ElapsedMS))
	}
	text := parts[0]
	for _, p := range parts[1:] {
		if len(text)+2+len(p) > columns {
			break
		}
		text += "  " + p
	}
	return text
}

// logStatus says in the log when a run enters a phase, and now and then that it goes on, until stop is closed.
func logStatus(log *zap.Logger, stop <-chan struct{}, live *run.Live) {
	ticks := time.NewTicker(statusPeriod)
	defer ticks.Stop()
	var rate rate
	var phase run.Phase
	for said := time.Now(); ; {
		select {
		case <-stop:
			return
		case <-ticks.C:
		}
		s := live.Status()
		rate.add(s)
		if s.Phase != phase || time.Since(said) >= aliveEvery {
			phase, said = s.Phase, time.Now()
			log.Info("status: " + strings.Join(strings.Fields(statusText(s, rate, 1<<10)), " "))
		}
	}
}

// outputState follows what is written to a terminal, to tell where its cursor is: only as far as lines of text with
// colours go. Who moves the cursor has the screen for himself.
type outputState struct {
	mode    outputMode
	params  []byte // of the control sequence that is being written
	last    byte
	start   bool // at the start of an empty line
	styled  bool // colours are on
	unclear bool // for good
}

type outputMode uint8

const (
	outputText outputMode = iota
	outputEscape
	outputControl // behind ESC [
)

// maxControl is how long a control sequence is that is understood, in bytes.
const maxControl = 64

func newOutputState() outputState { return outputState{start: true} }

// lineStart reports whether the cursor is at the start of an empty line and nothing would be spoilt by text there.
func (o *outputState) lineStart() bool {
	return o.start && !o.unclear && !o.styled && o.mode == outputText
}

func (o *outputState) add(p []byte) {
	for _, c := range p {
		if o.unclear {
			return
		}
		switch o.mode {
		case outputText:
			o.addText(c)
		case outputEscape:
			o.mode, o.params, o.unclear = outputControl, o.params[:0], c != '['
		case outputControl:
			o.addControl(c)
		}
		o.last = c
	}
}

func (o *outputState) addText(c byte) {
	switch {
	case c == '\n':
		o.start = true
	case c == '\r', c == '\a', c == 0: // none of them makes a line, or one that is empty
	case c == 0x1b:
		o.mode = outputEscape
	case c == 0x0e, c == 0x0f: // other characters
		o.unclear = true
	case o.last == 0xc2 && c >= 0x80 && c < 0xa0: // U+0080 to U+009F, which are control characters, too
		o.unclear = true
	default:
		o.start = false
	}
}

func (o *outputState) addControl(c byte) {
	switch {
	case c >= 0x20 && c < 0x40 && len(o.params) < maxControl:
		o.params = append(o.params, c)
		return
	case c == 'm':
		p := string(o.params)
		o.styled = p != "" && p != "0"
	case c != 'K': // erases a line's end, and stays there
		o.unclear = true
	}
	o.mode = outputText
}

// wantsStatusLine reports whether a run has a status line on stderr. Nothing else may be written to that terminal that
// does not go through the line: by who reads a pipe of ours, say, or as the echo of what is typed.
func (o *options) wantsStatusLine(stdout, stderr io.Writer) bool {
	if o.Quiet || o.Report == "-" || o.TTY || o.ShellOnFailure || o.input.readsTerminal() || !isTerminal(stderr) {
		return false
	}
	if info, err := os.Stat(o.Console); o.Console != "" && o.Console != "-" && err == nil && !info.Mode().IsRegular() {
		return false
	}
	return sameFile(stdout, stderr) || isSilent(stdout)
}

// isSilent reports whether what is written to w stays where it is.
func isSilent(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return info.Mode().IsRegular() || err == nil && os.SameFile(info, null)
}

// terminalSize is a terminal's size, or a usual one where it is gone or nobody has told it.
func terminalSize(f *os.File) (columns, rows int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// foreground reports whether the terminal is ours to write to: a shell takes it from jobs in the background.
func foreground(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp() // it may be no shell's
}

// startStatus shows how a run stands while it goes on, where that is wanted.
func (s *session) startStatus(live *run.Live) {
	switch {
	case s.status != nil:
		s.status.follow(live)
	case s.linux && s.Verbose && !isTerminal(s.stderrFile):
		s.statusStop, s.statusEnded = make(chan struct{}), make(chan struct{})
		go func() {
			defer close(s.statusEnded)
			logStatus(s.log, s.statusStop, live)
		}()
	}
}

// endStatus ends that.
func (s *session) endStatus() {
	s.status.end(statusEndLimit)
	if s.statusStop != nil {
		close(s.statusStop)
		<-s.statusEnded // a Stream does not keep it
	}
}
