package exporter

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ktstr/ktstr-vmm/internal/rundir"
)

// Names in the exporter's folder, which is its user's alone.
const (
	folderName = "ktstr-vmm"
	socketName = "exporter.sock"
	spoolName  = "spool"
)

// Find returns the socket of the exporter on this host, or "" if there never was one. One that is away has left its
// spool folder; runs have sockets of their own beside it.
func Find() string {
	for _, dir := range rundir.Folders() {
		socket := filepath.Join(dir, socketName)
		for _, sign := range []string{socket, spoolOf(socket)} {
			if _, err := os.Stat(sign); err == nil {
				return socket
			}
		}
	}
	return ""
}

// DefaultSocket returns where an exporter has its socket by default.
func DefaultSocket() (string, error) {
	all := rundir.Folders()
	if dir := os.Getenv("RUNTIME_DIRECTORY"); filepath.IsAbs(dir) { // of systemd's unit
		dir, _, _ = strings.Cut(dir, ":")
		all = append([]string{dir}, all...)
	}
	if len(all) == 0 {
		return "", fmt.Errorf("%w: say where the exporter's socket is to be, with --socket", rundir.ErrNone)
	}
	return filepath.Join(all[0], socketName), nil
}

// DefaultState returns where an exporter keeps its state by default.
func DefaultState() (string, error) {
	const name = "exporter.state"
	if dir := os.Getenv("STATE_DIRECTORY"); filepath.IsAbs(dir) { // of systemd's unit
		dir, _, _ = strings.Cut(dir, ":")
		return filepath.Join(dir, name), nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, folderName, name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("%w: say where the exporter's state is to be, with --state", err)
	}
	return filepath.Join(home, ".local", "state", folderName, name), nil
}

func spoolOf(socket string) string { return filepath.Join(filepath.Dir(socket), spoolName) }
