package suite

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// schemaVersion is the version of the suite's report: fields are added to it, none is renamed.
const schemaVersion = 1

// Report is what became of a suite, as its JSON report has it.
type Report struct {
	Schema      int       `json:"schema"`
	Name        string    `json:"name"`
	Version     string    `json:"version"` // of the program
	StartedAt   time.Time `json:"started_at"`
	Duration    float64   `json:"duration_seconds"`
	Shard       *Shard    `json:"shard,omitempty"`       // nil: all of the suite
	Interrupted string    `json:"interrupted,omitempty"` // the signal that ended it early
	Counts      Counts    `json:"counts"`
	Names       []string  `json:"names"` // of the runs of all shards, in the suite's order
	Runs        []*Result `json:"runs"`  // of this shard, in the suite's order
}

// Result is what became of a run of a suite.
type Result struct {
	Name   string   `json:"name"`
	Labels []string `json:"labels,omitempty"`
	Folder string   `json:"folder,omitempty"` // with the run's files, relative to the report's
	Args   []string `json:"args,omitempty"`   // of the program, to run it again
	Expect *Expect  `json:"expect,omitempty"` // nil: not known, for no shard has the run
	Status Status   `json:"status"`
	Attempt
	Earlier []Attempt `json:"earlier,omitempty"` // attempts that did not pass
	Tail    []string  `json:"tail,omitempty"`    // of the console, or of what the program said, where the run did not pass
}

// Attempt is one process that did a run. What is not known of one that left no report is empty.
type Attempt struct {
	StartedAt   *time.Time  `json:"started_at,omitempty"` // nil: it was not
	Duration    float64     `json:"duration_seconds"`
	Outcome     run.Outcome `json:"outcome,omitempty"`
	ExitCode    *int        `json:"exit_code,omitempty"` // none if a signal killed the process
	Reason      string      `json:"reason"`
	Arch        string      `json:"arch,omitempty"`
	Accelerator string      `json:"accelerator,omitempty"`
	Messages    uint64      `json:"messages"`
	Drops       uint64      `json:"drops"`
	// Iterations and IterationsMS are those of the last STIM: what the guest had done, and in how long.
	Iterations   uint64 `json:"iterations,omitempty"`
	IterationsMS uint32 `json:"iterations_ms,omitempty"`
}

// Status is what became of a run, in a word.
type Status string

// What can become of a run.
const (
	Passed  Status = "passed"  // it ended as was expected
	Flaky   Status = "flaky"   // so, but not at its first attempt
	Failed  Status = "failed"  // it ended in another way
	Lost    Status = "lost"    // its process was killed, or left no report
	Skipped Status = "skipped" // the suite ended before it
)

// Statuses returns all of them.
func Statuses() []Status { return []Status{Passed, Flaky, Failed, Lost, Skipped} }

// Bad reports whether a suite with such a run has failed.
func (s Status) Bad() bool { return s == Failed || s == Lost }

// Counts says how many runs have each status.
type Counts map[Status]int

// count counts again.
func (r *Report) count() {
	r.Counts = Counts{}
	for _, s := range Statuses() {
		r.Counts[s] = 0
	}
	for _, x := range r.Runs {
		r.Counts[x.Status]++
	}
}

// Passed reports whether nothing failed or was lost. A suite that was interrupted has not passed.
func (r *Report) Passed() bool {
	return r.Interrupted == "" && !slices.ContainsFunc(r.Runs, func(x *Result) bool { return x.Status.Bad() })
}

// ErrReport means that a suite's report can't be used.
var ErrReport = errors.New("no report of a suite")

// The files of a results folder.
const (
	reportFile   = "suite.json"
	junitFile    = "suite.xml"
	markdownFile = "summary.md"
	pageFile     = "report.html" // where the documentation has pages
	runsFolder   = "runs"
	tempPrefix   = ".ktstr-vmm-suite-" // of files that have yet to get their names
)

// maxReport bounds a report that is read, in bytes: maxRuns of them with their tails.
const maxReport = 256 << 20

// ReadReport reads a suite's report: of a results folder, or the file itself. It fails with ErrReport if it is none.
func ReadReport(path string) (*Report, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, reportFile)
	}
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &Report{}
	if err := json.NewDecoder(&fewObjects{r: io.LimitReader(f, maxReport)}).Decode(r); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrReport, path, err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrReport, path, err)
	}
	r.count() // the file's own counts are not believed
	return r, nil
}

// maxObjects is how many objects a report has at most: a run has one, one of what was expected, and one for each
// attempt before; and the report is one.
const maxObjects = 1 + maxRuns*(2+MaxRetries)

// fewObjects is a JSON text to read that has no more than maxObjects: an empty one takes two bytes there, and hundreds
// of them where it is decoded.
type fewObjects struct {
	r               io.Reader
	objects         int
	quoted, escaped bool
}

// Read implements io.Reader.
func (f *fewObjects) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	for _, c := range p[:n] {
		switch {
		case f.escaped:
			f.escaped = false
		case f.quoted && c == '\\':
			f.escaped = true
		case c == '"':
			f.quoted = !f.quoted
		case c == '{' && !f.quoted:
			f.objects++
		}
	}
	if f.objects > maxObjects {
		return 0, fmt.Errorf("it has more than %d objects", maxObjects)
	}
	return n, err
}

// openFile opens a plain file. Anything else might never be read to its end.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%w: %s is no plain file", ErrReport, path), f.Close())
	}
	return f, nil
}

// check judges a report that was read.
func (r *Report) check() error {
	if r.Schema != schemaVersion || r.Name == "" {
		return fmt.Errorf("schema %d and name %q, want schema %d and a name", r.Schema, r.Name, schemaVersion)
	}
	seen := map[string]bool{}
	for i, x := range r.Runs {
		switch {
		case x == nil || !slices.Contains(Statuses(), x.Status):
			return fmt.Errorf("run %d has no status of %v", i+1, Statuses())
		case x.Folder != "" && !filepath.IsLocal(x.Folder):
			return fmt.Errorf("run %q has the folder %q, which is not in the results", x.Name, x.Folder)
		case x.Status == Flaky && len(x.Earlier) == 0:
			return fmt.Errorf("run %q is flaky and has no earlier attempt", x.Name)
		case seen[x.Name]:
			return fmt.Errorf("run %q is there twice", x.Name)
		}
		seen[x.Name] = true
	}
	return nil
}

// Write writes the report into a results folder: as JSON, as JUnit and as a summary in Markdown.
func (r *Report) Write(dir string) error {
	return errors.Join(
		r.writeJSON(dir),
		writeFile(filepath.Join(dir, junitFile), r.JUnit),
		writeFile(filepath.Join(dir, markdownFile), r.Markdown),
	)
}

func (r *Report) writeJSON(dir string) error {
	r.count()
	return writeFile(filepath.Join(dir, reportFile), r.json)
}

// json writes the report as JSON, run by run: there may be many.
func (r *Report) json(w io.Writer) error {
	b := bufio.NewWriter(w)
	head := *r
	head.Runs = nil
	text, err := json.MarshalIndent(head, "", "  ")
	if err != nil {
		return err
	}
	before, after, _ := bytes.Cut(text, []byte(`"runs": null`)) // the last field; in texts there are no plain quotes
	_, _ = b.Write(before)                                      // its error comes with Flush
	_, _ = b.WriteString(`"runs": [`)
	for i, x := range r.Runs {
		text, err := json.MarshalIndent(x, "    ", "  ")
		if err != nil {
			return err
		}
		if i > 0 {
			_ = b.WriteByte(',')
		}
		_, _ = b.WriteString("\n    ")
		_, _ = b.Write(text)
	}
	_, _ = b.WriteString("\n  ]")
	_, _ = b.Write(after)
	_ = b.WriteByte('\n')
	return b.Flush()
}

// writeFile writes a file that takes its name when it is whole.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(0o644), write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Durations are the seconds that runs took, by name.
func (r *Report) Durations() map[string]float64 {
	d := map[string]float64{}
	for _, x := range r.Runs {
		if x.Status != Skipped && x.Status != Lost {
			d[x.Name] = x.Duration
		}
	}
	return d
}
