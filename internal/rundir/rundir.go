// Package rundir says where the sockets of runs and of the exporter are by default.
package rundir

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

const name = "ktstr-vmm"

// root is where root's sockets are, who may have no XDG_RUNTIME_DIR.
const root = "/run/" + name

// ErrNone means that there is no folder for a user's sockets.
var ErrNone = errors.New("XDG_RUNTIME_DIR is not set to a folder of this user's")

// Folders returns the folders where sockets can be, the one for new ones first, or none. They may have yet to be made.
//
// The XDG_RUNTIME_DIR of another user's, which sudo -E leaves set, is none of them: a folder that root makes there
// shuts that user out.
func Folders() (all []string) {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && mine(dir) {
		all = append(all, filepath.Join(dir, name))
	}
	if os.Geteuid() == 0 {
		all = append(all, root)
	}
	return all
}

func mine(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
