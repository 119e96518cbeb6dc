package bed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// ErrMissing is something that a script fetches or builds and that is not there, for errors.Is.
var ErrMissing = errors.New("is not in the cache; run scripts/fetch-linux and scripts/build-linux as root on Debian")

// Cache is the folder that scripts fetch into, of all clones together.
func Cache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "ktstr-vmm"), nil
}

// Find returns the cache's folder of the newest version of a package.
func Find(name string) (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(cache)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	newest := ""
	for _, e := range entries {
		version, ok := strings.CutPrefix(e.Name(), name+"_")
		if ok && (newest == "" || older(newest, version)) {
			newest = version
		}
	}
	if newest == "" {
		return "", fmt.Errorf("%s %w", name, ErrMissing)
	}
	return filepath.Join(cache, name+"_"+newest), nil
}

var numbers = regexp.MustCompile(`\d+|\D+`)

// older compares versions number by number.
func older(a, b string) bool {
	as, bs := numbers.FindAllString(a, -1), numbers.FindAllString(b, -1)
	for i := range min(len(as), len(bs)) {
		if as[i] == bs[i] {
			continue
		}
		m, errA := strconv.Atoi(as[i])
		n, errB := strconv.Atoi(bs[i])
		if errA == nil && errB == nil {
			return m < n
		}
		return as[i] < bs[i]
	}
	return len(as) < len(bs)
}

// Busybox returns the path of the cache's busybox.
func Busybox() (string, error) {
	dir, err := Find("busybox-static")
	return filepath.Join(dir, "bin", "busybox"), err
}

// QEMU returns the command of the QEMU that fetch-linux unpacked, which it does where the installed one is too
// old for the bed.
func QEMU() ([]string, error) {
	dir, err := Find("qemu-system-x86")
	if err != nil {
		return nil, err
	}
	command := []string{filepath.Join(dir, "usr", "bin", "qemu-system-x86_64")}
	for _, data := range [][2]string{{"seabios", "seabios"}, {"qemu-system-data", "qemu"}} {
		dir, err := Find(data[0])
		if err != nil {
			return nil, err
		}
		command = append(command, "-L", filepath.Join(dir, "usr", "share", data[1]))
	}
	return command, nil
}
