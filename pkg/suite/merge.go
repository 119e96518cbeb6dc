package suite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// ErrMerge means that reports can't be made one.
var ErrMerge = errors.New("reports that can't be merged")

// Merge makes one report of those of a suite's shards, in the results folder dir, with the folders of all runs. A run
// that no shard has is lost. It fails with ErrMerge if the shards are not of one suite, or two have the same run.
func Merge(dir string, shards []string) (*Report, error) {
	var all *Report
	results, from := map[string]*Result{}, map[string]string{}
	for _, shard := range shards {
		r, err := ReadReport(shard)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = &Report{Schema: r.Schema, Name: r.Name, Version: r.Version, StartedAt: r.StartedAt, Names: r.Names}
		}
		if r.Name != all.Name || !slices.Equal(r.Names, all.Names) {
			return nil, fmt.Errorf("%w: %q is of another suite than %q, or was run with another filter: %d runs of %q, and "+
				"%d of %q", ErrMerge, shard, shards[0], len(r.Names), r.Name, len(all.Names), all.Name)
		}
		if r.StartedAt.Before(all.StartedAt) {
			all.StartedAt = r.StartedAt
		}
		all.Duration = max(all.Duration, r.Duration)
		if r.Interrupted != "" {
			all.Interrupted = r.Interrupted
		}
		for _, x := range r.Runs {
			if other, twice := from[x.Name]; twice {
				return nil, fmt.Errorf("%w: the run %q is in %q and in %q: give each shard once", ErrMerge, x.Name, other, shard)
			}
			if !slices.Contains(r.Names, x.Name) {
				return nil, fmt.Errorf("%w: %q has the run %q, which is not of the suite", ErrMerge, shard, x.Name)
			}
			results[x.Name], from[x.Name] = x, shard
		}
	}
	for _, name := range all.Names {
		x := results[name]
		if x == nil {
			x = &Result{Name: name, Status: Lost}
			x.Reason = "no shard has it"
		} else if err := linkTree(filepath.Join(dir, x.Folder), filepath.Join(from[name], x.Folder)); err != nil {
			return nil, err
		}
		all.Runs = append(all.Runs, x)
	}
	return all, all.Write(dir)
}

// linkTree makes a folder of the plain files of another one: by links, or copies where these can't be. A folder that is
// not there, as of a run that was not started, is no error.
func linkTree(to, from string) error {
	root, err := os.OpenRoot(from)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		switch target := filepath.Join(to, path); {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case !d.Type().IsRegular():
			return nil
		case os.Link(filepath.Join(from, path), target) == nil:
			return nil
		default:
			return copyFile(target, root, path)
		}
	})
}

func copyFile(to string, root *os.Root, path string) error {
	in, err := root.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	return writeFile(to, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}
