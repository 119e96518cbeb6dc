package suite

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// Runner does the runs of a suite, each as a process.
type Runner struct {
	Program string   // ktstr-vmm's path
	Version string   // its version
	Environ []string // what runs get, "NAME=VALUE"; settings that the suite makes for each are left out
	Results *Results

	Jobs     int  // how many runs at a time; 0 for as many as the host's CPUs and memory carry
	Retries  int  // how many more attempts a run has that does not pass; at most MaxRetries
	FailFast bool // start nothing more after the first run that failed
	Shard    *Shard
	Extra    []string      // flags for each run beside those of its files
	Overdue  time.Duration // how late a run's process may be before it is killed; 0: DefaultOverdue

	// Signals end the suite: each goes to the runs that there are, SIGINT as it is and any other as SIGTERM, and no
	// further run is started.
	Signals <-chan os.Signal
	// OnStart and OnEnd hear of each attempt at a run, one at a time. An attempt that will be followed by another one
	// has Failed or Lost and again set.
	OnStart func(x *Run)
	OnEnd   func(x *Run, r *Result, again bool)
	// OnMetrics, if it is set, makes each attempt leave its metrics, and gets the path of that textfile. It is not there
	// if the process was killed or could not do it.
	OnMetrics func(r *Result, path string)
}

// Run does the chosen ones of a suite's runs, of which names are all, and writes the report. Its error is about the
// results folder: what a run ends with is in the report.
func (r *Runner) Run(name string, names []string, chosen []*Run) (*Report, error) {
	w := &work{Runner: r, room: r.room(), report: &Report{
		Schema: schemaVersion, Name: name, Version: r.Version, StartedAt: time.Now(), Shard: r.Shard, Names: names,
	}}
	for _, x := range chosen {
		result := &Result{Name: x.Name, Labels: x.Labels, Folder: filepath.Join(runsFolder, folderName(x.Name)),
			Args: x.Args(), Expect: &x.Expect, Status: Lost}
		result.Reason = "the suite was ended before this run"
		w.queue = append(w.queue, &job{run: x, result: result})
		w.report.Runs = append(w.report.Runs, result)
	}
	// If the suite itself is killed, this is what it leaves.
	if err := w.report.Write(r.Results.Dir); err != nil {
		return nil, err
	}
	w.done = make(chan ended, len(chosen)) // nobody has to wait for a process's end to be heard of
	w.all()
	w.report.Duration = time.Since(w.report.StartedAt).Seconds()
	return w.report, w.report.Write(r.Results.Dir)
}

// writeEvery is how often a report is written while runs end.
const writeEvery = 3 * time.Second

// maxTails is of how many attempts the last lines are kept: a suite may have many runs, and all may fail.
const maxTails = 2000

// job is a run that is to be done.
type job struct {
	run    *Run
	result *Result
}

// work is a suite that is being run. It belongs to one goroutine; processes have one each, which ends with them.
type work struct {
	*Runner
	report  *Report
	queue   []*job
	running map[*child]*job
	room    room
	done    chan ended
	over    string // why nothing more is started, or ""
	tails   int    // attempts whose last lines were kept
	written time.Time
	reading sync.Mutex // one report at a time: each may be large
}

func (w *work) all() {
	w.running = map[*child]*job{}
	for {
		for w.over == "" && len(w.queue) > 0 && w.room.take(w.queue[0].run) {
			w.start(w.queue[0])
			w.queue = w.queue[1:]
		}
		if len(w.running) == 0 {
			break
		}
		select {
		case e := <-w.done:
			w.end(e)
		case sig := <-w.Signals:
			w.report.Interrupted = run.SignalName(sig)
			w.over = "the suite was ended by " + w.report.Interrupted
			if sig != syscall.SIGINT {
				sig = syscall.SIGTERM
			}
			for c := range w.running {
				select {
				case c.stop <- sig:
				default: // it has enough of them
				}
			}
		}
	}
	for _, j := range w.queue {
		j.result.skip(w.over)
	}
}

// skip is for a run, or another attempt at one, that was not done, or not to its end. An attempt before it counts.
func (r *Result) skip(why string) {
	if n := len(r.Earlier); n > 0 {
		r.Attempt, r.Earlier = r.Earlier[n-1], r.Earlier[:n-1]
		r.Status, r.Reason = Failed, r.Reason+"; it was not tried again: "+why
		if r.Outcome == "" {
			r.Status = Lost
		}
		return
	}
	r.Status, r.Reason = Skipped, why
}

// start begins an attempt at a run.
func (w *work) start(j *job) {
	if w.OnStart != nil && len(j.result.Earlier) == 0 {
		w.OnStart(j.run)
	}
	c := &child{run: j.run, program: w.Program, dir: filepath.Join(w.Results.Dir, j.result.Folder), env: w.environ(),
		stop: make(chan os.Signal, 4), overdue: cmp.Or(w.Overdue, DefaultOverdue), reading: &w.reading}
	c.args = j.run.Args(w.flags(j.run, c.dir)...)
	w.running[c] = j
	if err := w.folder(c, j); err != nil {
		e := ended{child: c, status: Failed}
		e.Outcome, e.Reason = run.Failed, err.Error()
		w.done <- e
		return
	}
	go func() { w.done <- c.do() }()
}

// folder makes the folder of an attempt. The files of an earlier one move to a folder in it.
func (w *work) folder(c *child, j *job) error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	if n := len(j.result.Earlier); n > 0 {
		if err := moveFiles(c.dir, filepath.Join(c.dir, fmt.Sprintf("attempt-%d", n))); err != nil {
			return err
		}
	}
	script := w.script(j.run)
	return os.WriteFile(filepath.Join(c.dir, runCommand), []byte(script), 0o755)
}

// moveFiles moves a folder's files, not its folders, to a new one.
func moveFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// end takes what an attempt came to.
func (w *work) end(e ended) {
	j := w.running[e.child]
	delete(w.running, e.child)
	w.room.give(j.run)
	r := j.result
	r.Attempt, r.Status, r.Tail = e.Attempt, e.status, nil
	if e.interrupted() && w.report.Interrupted != "" {
		r.skip(w.over)
	}
	again := r.Status.Bad() && len(r.Earlier) < w.Retries && w.over == ""
	switch {
	case r.Status == Passed && len(r.Earlier) > 0:
		r.Status = Flaky
	case r.Status.Bad() && w.tails < maxTails:
		r.Tail = e.tail
		w.tails++
	}
	if path := filepath.Join(e.child.dir, runMetrics); w.OnMetrics != nil {
		w.OnMetrics(r, path)
	}
	if w.OnEnd != nil {
		w.OnEnd(j.run, r, again)
	}
	if again {
		r.Earlier = append(r.Earlier, r.Attempt)
		w.queue = slices.Insert(w.queue, 0, j)
		return
	}
	if r.Status.Bad() && w.FailFast && w.over == "" {
		w.over = fmt.Sprintf("the suite ended at the first failure, %s", r.Name)
	}
	if time.Since(w.written) > writeEvery {
		_ = w.report.writeJSON(w.Results.Dir) // what there is if the suite is killed; the last one's error counts
		w.written = time.Now()
	}
}

// interrupted reports whether the run did not pass because of a signal. One may come before the process knows of it, or
// has a place for its report.
func (e *ended) interrupted() bool {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if e.Outcome == "" && (e.killed == sig || e.ExitCode != nil && *e.ExitCode == 128+int(sig)) {
			return true
		}
	}
	return e.status.Bad() && e.Outcome == run.Interrupted
}

// flags are what a suite makes for each run.
func (w *work) flags(x *Run, dir string) []string {
	file := func(key, name string) string { return "--" + key + "=" + filepath.Join(dir, name) }
	flags := []string{file("report", runReport), "--report-format=json", file("ring", runRing), "--suite=" + w.report.Name}
	if len(x.Name) < maxName {
		flags = append(flags, "--name="+x.Name)
	}
	if x.Command == config.Run {
		flags = append(flags, file("console", runConsole))
	}
	if w.OnMetrics != nil {
		flags = append(flags, file("metrics-textfile", runMetrics))
	}
	return append(flags, w.Extra...)
}

// maxName is how long a name is, in bytes, that a run is told: Linux takes an argument of less than 128 KiB, and a run
// that is called after its command calls itself so, too.
const maxName = 64 << 10

// unset are the environment variables that no run gets: what they say is in the suite's file, or for the suite to say.
var unset = func() []string {
	names := []string{config.EnvConfig}
	for _, key := range own {
		names = append(names, config.Variable(key))
	}
	return names
}()

// environ is a run's environment.
func (w *work) environ() []string {
	return slices.DeleteFunc(slices.Clone(w.Environ), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(unset, name)
	})
}

// script is a shell script that does a run again, and shows it.
func (w *work) script(x *Run) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	if dir, err := os.Getwd(); err == nil {
		fmt.Fprintf(&b, "cd %s || exit\n", quote(dir))
	}
	fmt.Fprintf(&b, "unset %s\n", strings.Join(unset, " "))
	for _, v := range w.environ() {
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, config.EnvPrefix) {
			fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
		}
	}
	args, more := x.Args(), false
	b.WriteString("exec " + quote(w.Program))
	for _, arg := range args {
		if arg == "--" && !more { // what is behind it is the guest's
			b.WriteString(` "$@"`)
			more = true
		}
		b.WriteString(" " + quote(arg))
	}
	if !more {
		b.WriteString(` "$@"`)
	}
	b.WriteString("\n")
	return b.String()
}

// quote makes a word of a shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// ExitCode returns the program's exit code for a report: 0, 1 where something failed or was lost, and 129, 130 or 143
// where SIGHUP, SIGINT or SIGTERM ended the suite.
func (r *Report) ExitCode() int {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if r.Interrupted == run.SignalName(sig) {
			return 128 + int(sig)
		}
	}
	if !r.Passed() {
		return 1
	}
	return 0
}
