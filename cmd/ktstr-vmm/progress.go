package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

const (
	// refreshRate is how often bars are drawn anew.
	refreshRate = 250 * time.Millisecond
	// maxNameShown is how much of a run's name a bar shows, in runes.
	maxNameShown = 60
)

// progress shows how far a suite is: a line for each run that is over, and on a terminal below them what is running.
type progress struct {
	out    *report.Stream
	bars   *mpb.Progress // nil: the output is no terminal
	writer *barWriter
	all    *mpb.Bar
	each   map[*suite.Run]*mpb.Bar // of running ones, as far as there is room

	omitted int // lines that a slow reader did not get
	total   int

	mu       sync.Mutex // guards what follows, which bars are drawn from
	done     int
	bad      int
	estimate estimate
}

// newProgress shows the chosen runs on a stream to a file.
func newProgress(out *report.Stream, file io.Writer, c chosen) *progress {
	p := &progress{out: out, total: len(c.runs), each: map[*suite.Run]*mpb.Bar{}, estimate: newEstimate(c)}
	if !isTerminal(file) || p.total == 0 {
		return p
	}
	p.writer = &barWriter{file: file.(*os.File), out: out}
	p.bars = mpb.New(mpb.WithConsoleWriter(p.writer), mpb.WithRefreshRate(refreshRate), mpb.WithAutoRefresh())
	p.all = p.bars.New(int64(p.total), mpb.BarStyle(), mpb.BarPriority(1<<20), mpb.BarRemoveOnComplete(),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return p.counts() })))
	return p
}

// counts says in a few words how far the suite is.
func (p *progress) counts() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := fmt.Sprintf(" %d/%d done, %d running", p.done, p.total, len(p.estimate.running))
	if p.bad > 0 {
		text += fmt.Sprintf(", %d failed", p.bad)
	}
	if left, ok := p.estimate.left(); ok {
		text += fmt.Sprintf(", ETA %v", left.Round(time.Second))
	}
	return text
}

// started shows that a run is running.
func (p *progress) started(x *suite.Run) {
	p.mu.Lock()
	p.estimate.start(x)
	p.mu.Unlock()
	if p.bars == nil || len(p.each) >= p.writer.rows()-2 {
		return // the count of those that are running has it
	}
	name := []rune(report.Printable(x.Name))
	if len(name) > maxNameShown {
		name = append(name[:maxNameShown-1], '…')
	}
	bar, err := p.bars.Add(1, mpb.NopStyle().Build(), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Elapsed(decor.ET_STYLE_MMSS), decor.Name("  "+string(name))))
	if err == nil {
		p.each[x] = bar
	}
}

// ended shows how an attempt at a run ended.
func (p *progress) ended(x *suite.Run, r *suite.Result, again bool) {
	if again {
		p.print(fmt.Sprintf("%s; once more\n", r.Line()))
		return
	}
	p.mu.Lock()
	p.done++
	if r.Status.Bad() {
		p.bad++
	}
	text := fmt.Sprintf("[%*d/%d] %s", len(fmt.Sprint(p.total)), p.done, p.total, r.InPlace())
	p.estimate.end(x, r)
	p.mu.Unlock()
	p.print(text)
	if bar := p.each[x]; bar != nil {
		bar.Abort(true)
		delete(p.each, x)
	}
	if p.bars != nil {
		p.all.Increment()
	}
}

// warn shows what went wrong beside the runs.
func (p *progress) warn(err error) { p.print("warning: " + report.Printable(err.Error()) + "\n") }

// print prints lines above the bars, or leaves them out if the reader is far behind.
func (p *progress) print(text string) {
	switch {
	case p.out.Pending() > maxPendingLines:
		p.omitted++
	case p.bars == nil:
		_, _ = io.WriteString(p.out, text) // its error comes with Close
	default:
		_, _ = io.WriteString(p.bars, text)
	}
}

// close takes the bars away. Nothing may be shown after it but by warn.
func (p *progress) close() {
	if p.bars != nil {
		p.all.Abort(true)
		for _, bar := range p.each {
			bar.Abort(true)
		}
		p.bars.Wait()
		p.bars = nil
	}
	if p.omitted > 0 {
		fmt.Fprintf(p.out, "%d lines were left out for a slow reader\n", p.omitted)
	}
}

// barWriter is what bars are drawn with: on a terminal, through a stream, so that one that is stuck holds up nothing.
type barWriter struct {
	bytes.Buffer
	file *os.File
	out  *report.Stream
}

// IsTerminal implements mpb.ConsoleWriter.
func (*barWriter) IsTerminal() bool { return true }

// GetTermSize implements mpb.ConsoleWriter. It does not fail: mpb would give up all bars.
func (w *barWriter) GetTermSize() (width, height int, err error) {
	width, height = terminalSize(w.file)
	return width, height, nil
}

// rows is how many lines the terminal has.
func (w *barWriter) rows() int {
	_, rows, _ := w.GetTermSize()
	return rows
}

// Flush implements mpb.ConsoleWriter: what was written is shown, and so many lines of it will be drawn over. It does
// not fail either: who is gone sees nothing.
func (w *barWriter) Flush(lines int) error {
	if w.out.Pending() > maxPendingLines {
		w.Reset()
		return nil
	}
	_, _ = w.WriteTo(w.out)
	w.Reset()
	if lines > 0 {
		fmt.Fprintf(w, "\x1b[%dA\x1b[J", lines)
	}
	return nil
}

// estimate tells how long the rest of a suite takes, by how long its runs took before, or those do that are over.
type estimate struct {
	recorded map[string]float64 // seconds, by name
	known    float64            // seconds of runs that are not over
	unknown  int                // runs that are not over, of which nothing is recorded
	took     float64            // seconds of those that are over
	over     int
	running  map[*suite.Run]time.Time // since when
}

func newEstimate(c chosen) estimate {
	e := estimate{recorded: c.durations, running: map[*suite.Run]time.Time{}}
	for _, x := range c.runs {
		if d, ok := e.recorded[x.Name]; ok {
			e.known += d
		} else {
			e.unknown++
		}
	}
	return e
}

func (e *estimate) start(x *suite.Run) { e.running[x] = time.Now() }

func (e *estimate) end(x *suite.Run, r *suite.Result) {
	delete(e.running, x)
	e.took += r.Duration
	e.over++
	if d, ok := e.recorded[x.Name]; ok {
		e.known -= d
	} else {
		e.unknown--
	}
}

// left is how long the rest takes if as many go on to run at a time. It is not known before there is a duration.
func (e *estimate) left() (d time.Duration, ok bool) {
	mean := 0.0
	if e.over > 0 {
		mean = e.took / float64(e.over)
	} else if e.unknown > 0 {
		return 0, false
	}
	seconds := e.known + float64(e.unknown)*mean
	for x, since := range e.running {
		expected, ok := e.recorded[x.Name]
		if !ok {
			expected = mean
		}
		seconds -= min(time.Since(since).Seconds(), expected)
	}
	return time.Duration(max(seconds, 0) / float64(max(len(e.running), 1)) * float64(time.Second)), true
}
