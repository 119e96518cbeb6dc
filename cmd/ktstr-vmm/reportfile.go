package main

import (
	"os"
	"path/filepath"
)

// reportFile is a report's file. It is made before the run, so that a path that can't be written
// is known at once, and takes its name when the report is whole.
type reportFile struct {
	*os.File
	path string // what it is renamed to, or "" where it is written in place
	done bool
}

// openReport opens a report's file. What is there and is no plain file (a pipe, a device) is
// written in place.
func openReport(path string) (*reportFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		return &reportFile{File: f}, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".ktstr-vmm-report-*")
	if err != nil {
		return nil, err
	}
	r := &reportFile{File: f, path: path}
	if err := f.Chmod(0o644); err != nil {
		r.discard()
		return nil, err
	}
	return r, nil
}

// commit gives the file its name.
func (r *reportFile) commit() error {
	if err := r.Close(); err != nil {
		return err
	}
	if r.path != "" {
		if err := os.Rename(r.Name(), r.path); err != nil {
			return err
		}
	}
	r.done = true
	return nil
}

// discard removes a file that was not committed.
func (r *reportFile) discard() {
	if r.done {
		return
	}
	_ = r.Close()
	if r.path != "" {
		_ = os.Remove(r.Name())
	}
}
