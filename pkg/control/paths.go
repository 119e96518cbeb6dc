package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/rundir"
)

const suffix = ".sock"

// maxPath is how long a socket's path can be, in bytes: unix(7), sun_path without its final 0.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Bounds of a search.
const (
	askedAtOnce = 16
	askLimit    = 2 * time.Second
)

// folder is where sockets are by default. Root's runs in the other one are not looked for: it would depend on the runs
// of everybody who is root whether an ID may be left out.
func folder() (string, error) {
	all := rundir.Folders()
	if len(all) == 0 {
		return "", rundir.ErrNone
	}
	return all[0], nil
}

// DefaultPath returns where the socket of a run is by default, and makes its folder if need be. It fails where there is
// no folder for it, or one that is open to others.
func DefaultPath(id string) (string, error) {
	dir, err := folder()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s has to be a folder of this user's alone: chmod 700", dir)
	}
	return filepath.Join(dir, id+suffix), nil
}

// IsID reports whether a text is a run's ID, or the beginning of one. There are other sockets in the folder, too.
func IsID(text string) bool {
	return text != "" && len(text) <= 16 && strings.Trim(text, "0123456789abcdef") == ""
}

// Found is a socket of a run.
type Found struct {
	ID     string
	Path   string
	Status *Status // nil if the run did not answer
	Err    error   // why not
}

// List returns the runs of this user whose IDs begin with a text and that have their sockets where they are by default,
// the oldest first, and what they do. It removes the sockets of runs that were killed.
func List(ctx context.Context, prefix string) ([]Found, error) {
	found, err := sockets(prefix)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var all sync.WaitGroup
	slots := make(chan struct{}, askedAtOnce)
	for i := range found {
		f := &found[i]
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			f.Status, f.Err = Client{f.Path}.Status(ctx)
		})
	}
	all.Wait()
	found = slices.DeleteFunc(found, func(f Found) bool {
		if errors.Is(f.Err, ErrNotRunning) {
			_ = os.Remove(f.Path) // nobody will listen there again; it is found again if that fails
			return true
		}
		return errors.Is(f.Err, ErrOver)
	})
	slices.SortStableFunc(found, func(a, b Found) int { return a.started().Compare(b.started()) })
	return found, nil
}

// started is when a run began, as far as it has said so.
func (f Found) started() time.Time {
	if f.Status == nil {
		return time.Time{}
	}
	return f.Status.StartedAt
}

// sockets are those of runs whose IDs begin so.
func sockets(prefix string) (found []Found, err error) {
	dir, err := folder()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), suffix)
		if ok && IsID(id) && strings.HasPrefix(id, prefix) && entry.Type() == fs.ModeSocket {
			found = append(found, Found{ID: id, Path: filepath.Join(dir, entry.Name())})
		}
	}
	return found, nil
}
