package suite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrDir means that a results folder can't be used.
var ErrDir = errors.New("results folder")

// Results is a results folder that nobody else writes to.
type Results struct {
	Dir  string
	lock *os.File // the folder
}

// OpenResults makes a results folder, or takes one of an earlier suite, whose files it removes. One that has anything
// else in it, or that another suite has open, is refused with ErrDir.
func OpenResults(dir string) (*Results, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDir, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDir, err)
	}
	r := &Results{Dir: dir, lock: f}
	if err := r.take(); err != nil {
		r.Close()
		return nil, fmt.Errorf("%w: %w", ErrDir, err)
	}
	return r, nil
}

// take locks the folder and empties it.
func (r *Results) take() error {
	if err := unix.Flock(int(r.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%q is in use by another suite: name another folder, or wait: %w", r.Dir, err)
	}
	entries, err := os.ReadDir(r.Dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	for _, e := range entries {
		if !isOurs(e) {
			return fmt.Errorf("%q has %q, which is not of a suite: name another folder, or empty it", r.Dir, e.Name())
		}
	}
	if _, err := ReadReport(r.Dir); err != nil {
		return fmt.Errorf("%q has files, and not the report of an earlier suite: name another folder, or empty it: %w", r.Dir,
			err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(r.Dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// isOurs reports whether a suite may have written it, or "ktstr-vmm report" for it.
func isOurs(e fs.DirEntry) bool {
	if e.Name() == runsFolder {
		return e.IsDir()
	}
	return e.Type().IsRegular() && (slices.Contains([]string{reportFile, junitFile, markdownFile, pageFile}, e.Name()) ||
		strings.HasPrefix(e.Name(), tempPrefix))
}

// Close gives the folder free.
func (r *Results) Close() { _ = r.lock.Close() }
