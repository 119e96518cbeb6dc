package main

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// outputFile is a file that is written when the run has ended. It is made before the run, so that a path that can't be
// written is known at once, and takes its name when it is whole.
type outputFile struct {
	*os.File
	path string // what it is renamed to, or "" where it is written in place
	done bool
}

// openOutput opens such a file. What is there and is no plain file (a pipe, a device) is
// written in place.
func openOutput(path string) (*outputFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		return &outputFile{File: f}, err
	}
	f, err := createTemp(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return &outputFile{File: f, path: path}, nil
}

// createTemp makes a file as os.Create does, so that the umask says who may read it; os.CreateTemp's are for their
// owner alone.
func createTemp(dir string) (*os.File, error) {
	for {
		path := filepath.Join(dir, ".ktstr-vmm-output-"+rand.Text())
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		var failed *fs.PathError
		if errors.As(err, &failed) { // nobody asked for a file of that name
			err = &fs.PathError{Op: "making a file in", Path: dir, Err: failed.Err}
		}
		return f, err
	}
}

// commit gives the file its name.
func (r *outputFile) commit() error {
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
func (r *outputFile) discard() {
	if r.done {
		return
	}
	_ = r.Close()
	if r.path != "" {
		_ = os.Remove(r.Name())
	}
}
