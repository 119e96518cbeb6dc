package suite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrMerge means that reports can't be merged.
var ErrMerge = errors.New("reports that can't be merged")

// Merger makes one report of those of a suite's shards.
type Merger struct {
	report *Report
	from   map[string]string // the shard's folder, by a run's name
	dirs   []string
}

// NewMerger reads and judges the reports of shards, which are results folders. It fails with ErrMerge if they are not
// of one suite, or two have the same run.
func NewMerger(shards []string) (*Merger, error) {
	m := &Merger{from: map[string]string{}, dirs: shards}
	results := map[string]*Result{}
	for _, shard := range shards {
		if info, err := os.Stat(shard); err == nil && !info.IsDir() {
			return nil, fmt.Errorf("%w: %q is no folder: the files of its runs are to be merged, too", ErrMerge, shard)
		}
		r, err := ReadReport(shard)
		if err != nil {
			return nil, err
		}
		if err := m.add(shard, r, results); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMerge, err)
		}
	}
	for _, name := range m.report.Names {
		x := results[name]
		if x == nil {
			x = &Result{Name: name, Status: Lost}
			x.Reason = "no shard has it"
		}
		m.report.Runs = append(m.report.Runs, x)
	}
	return m, nil
}

func (m *Merger) add(shard string, r *Report, results map[string]*Result) error {
	if m.report == nil {
		m.report = &Report{Schema: r.Schema, Name: r.Name, Version: r.Version, StartedAt: r.StartedAt, Names: r.Names}
	}
	all := m.report
	if r.Name != all.Name || !slices.Equal(r.Names, all.Names) {
		return fmt.Errorf("%q is of another suite than %q, or was run with another filter: %d runs of %q, and %d of %q",
			shard, m.dirs[0], len(r.Names), r.Name, len(all.Names), all.Name)
	}
	if r.StartedAt.Before(all.StartedAt) {
		all.StartedAt = r.StartedAt
	}
	all.Duration = max(all.Duration, r.Duration)
	if r.Interrupted != "" {
		all.Interrupted = r.Interrupted
	}
	names := map[string]bool{}
	for _, name := range r.Names {
		names[name] = true
	}
	for _, x := range r.Runs {
		if other, twice := m.from[x.Name]; twice {
			return fmt.Errorf("the run %q is in %q and in %q: give each shard once", x.Name, other, shard)
		}
		if !names[x.Name] {
			return fmt.Errorf("%q has the run %q, which is not of the suite", shard, x.Name)
		}
		results[x.Name], m.from[x.Name] = x, shard
	}
	return nil
}

// Has reports whether a folder is one of those that are merged, by whatever path.
func (m *Merger) Has(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && slices.ContainsFunc(m.dirs, func(shard string) bool {
		other, err := os.Stat(shard)
		return err == nil && os.SameFile(info, other)
	})
}

// Write writes the report into a results folder, with the folders of all runs. A run that no shard has is lost.
func (m *Merger) Write(to *Results) (*Report, error) {
	for _, x := range m.report.Runs {
		shard, ok := m.from[x.Name]
		if !ok || x.Folder == "" {
			continue
		}
		err := linkTree(filepath.Join(to.Dir, x.Folder), shard, x.Folder)
		if errors.Is(err, fs.ErrNotExist) && (x.Status == Skipped || x.Status == Lost) {
			continue // it was not started
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the files of the run %q in %q: %w", ErrMerge, x.Name, shard, err)
		}
	}
	return m.report, m.report.Write(to.Dir)
}

// linkTree makes a folder of the plain files of another one, which is in a root: by links, or copies where these can't
// be. Nothing is taken from outside of the root, whatever links there are in it.
func linkTree(to, root, folder string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	from, err := r.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer from.Close()
	return fs.WalkDir(from.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		switch target := filepath.Join(to, path); {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type().IsRegular():
			return linkFile(target, from, path)
		}
		return nil
	})
}

func linkFile(to string, root *os.Root, path string) error {
	in, err := root.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	opened := fmt.Sprintf("/proc/self/fd/%d", in.Fd()) // the file that is open, not what has its name by now
	if unix.Linkat(unix.AT_FDCWD, opened, unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW) == nil {
		return nil
	}
	return writeFile(to, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}
