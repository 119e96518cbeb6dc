package initramfs

import (
	"errors"
	"path/filepath"
	"strings"
)

// Limits of Linux's, include/uapi/linux/limits.h and include/linux/namei.h.
const (
	maxPath  = 4096 // PATH_MAX
	maxLinks = 40   // MAXSYMLINKS
)

var (
	errLoop     = errors.New("too many links lead to it")
	errLongPath = errors.New("its path is longer than the 4096 bytes that Linux takes")
)

// inside is a guest's path as an archive has it: clean, and without its slash.
func inside(path string) string { return strings.TrimPrefix(filepath.Clean("/"+path), "/") }

// split cuts a path's last name off.
func split(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// resolve follows all links in a path of a root, of which readlink knows the links. Like the result, what
// readlink gets begins with no slash.
func resolve(path string, readlink func(path string) (target string, ok bool)) (string, error) {
	done, rest, followed := "", path, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			done, _ = split(done)
			continue
		}
		next := join(done, name)
		if len(next) > maxPath || len(rest) > 2*maxPath {
			return "", errLongPath
		}
		target, ok := readlink(next)
		if !ok {
			done = next
			continue
		}
		if followed++; followed > maxLinks {
			return "", errLoop
		}
		if strings.HasPrefix(target, "/") {
			done = ""
		}
		rest = target + "/" + rest
	}
	return done, nil
}

// place follows the links in what leads to a path, and leaves its last name as it is.
func place(path string, readlink func(string) (string, bool)) (string, error) {
	dir, name := split(path)
	dir, err := resolve(dir, readlink)
	return join(dir, name), err
}
