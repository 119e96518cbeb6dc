// Package qemu runs machines on QEMU's emulator: a child process that shares the guest's RAM with this one, and needs
// no virtualization on its host. It uses QEMU's processors and a few of its devices. What the guest boots with is
// already in RAM; QEMU's own firmware, kernel loading and memory map are not used.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// Backend is QEMU's emulator. The zero value looks it up on PATH.
type Backend struct {
	Program string // the emulator for the board's architecture; "": qemu-system-…, on PATH
}

// Why QEMU can't be used, for errors.Is. They come with vm.ErrUnavailable.
var (
	ErrNotInstalled = errors.New("QEMU is not installed")
	ErrTooOld       = errors.New("QEMU is too old")
)

// ErrTopology means that QEMU can't show a guest processors in this topology. It comes with vm.ErrConfig.
var ErrTopology = errors.New("the emulator can't show a guest this topology")

// release is a version of QEMU.
type release struct{ major, minor int }

func (r release) String() string { return fmt.Sprintf("%d.%d", r.major, r.minor) }

func (r release) before(o release) bool {
	return r.major < o.major || r.major == o.major && r.minor < o.minor
}

var (
	// oldest is the oldest that works, by trying.
	oldest = release{7, 2}
	// threadsWork is the first whose processors may run on threads of their own while Linux changes its own
	// code: before, one may go on in code of before the change, and a boot ends with "Oops: int3". QEMU's
	// commit deba78709ae8, "accel/tcg: Always lock pages before translation".
	threadsWork = release{8, 1}
)

// versionLimit bounds how long a QEMU may take to say what it is.
const versionLimit = 10 * time.Second

// Name implements vm.Backend.
func (Backend) Name() string { return "emulator" }

// platform is what differs between the boards.
type platform interface {
	// program is the emulator's name, and pkg the packages that have it, by the program that installs them.
	program() string
	packages() map[string]string
	// place says how many bytes of RAM QEMU is given, and where in them a span of the layout lies.
	place(l vm.Layout) (size uint64, offset func(vm.Span) uint64)
	// args are QEMU's, with the RAM as fd 3, the firmware as fd 4, and as fds 5 to 7 the pipes for the console,
	// the log and the doorbell; those of the monitor are added to them.
	args(size uint64, t topology.Topology, threads string) []string
	// check reports what QEMU can't show of a topology: ErrTopology.
	check(t topology.Topology) error
	// firmware is what the processors run before the kernel.
	firmware() []byte
	// mailbox is where the firmware and the host meet.
	mailbox(e vm.Entry) mailbox
	// listen makes the way on which QEMU says why the guest ends, who hears it, and its two ends, ours and
	// QEMU's.
	listen() (l listener, ours, theirs *os.File, err error)
	// registers returns a processor's registers from those that QEMU shows, by its names.
	registers(fields map[string]uint64) (vm.Registers, error)
}

func platformOf(b vm.Board) (platform, error) {
	switch b.(type) {
	case x86.Board:
		return x86Platform{}, nil
	case arm64.Board:
		return arm64Platform{}, nil
	}
	return nil, fmt.Errorf("%w: the emulator back end can't run %s guests", vm.ErrArch, b.Arch())
}

// find returns the path of the emulator for a platform.
func (b Backend) find(p platform) (string, error) {
	name := b.Program
	if name == "" {
		name = p.program()
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", vm.Unavailable(fmt.Errorf("%w: %w; %s", ErrNotInstalled, err, howToInstall(p)))
	}
	return path, nil
}

// Find returns the path of the emulator for a board, without running it. It fails with New's error.
func (b Backend) Find(board vm.Board) (string, error) {
	p, err := platformOf(board)
	if err != nil {
		return "", err
	}
	return b.find(p)
}

// Check finds the emulator for a board, runs it to get its version, and returns its path and version. It fails with
// New's error.
func (b Backend) Check(board vm.Board) (path, version string, err error) {
	p, err := platformOf(board)
	if err != nil {
		return "", "", err
	}
	if path, err = b.find(p); err != nil {
		return "", "", err
	}
	version, _, err = checkVersion(path, p)
	return path, version, err
}

// crowd is how many of a guest's processors to one CPU of the host are better off on one thread, by trying: threads
// that wait for each other, as Linux's processors do when they start, would wait for the host's scheduler every time.
const crowd = 5

// Crowded reports whether so many processors take turns on one thread, because the host has few CPUs for them: all that
// this process may use, or those that they are pinned to.
func Crowded(cpus int, pin []int) bool {
	host := len(pin)
	if host == 0 {
		host = runtime.NumCPU()
	}
	return cpus >= crowd*host
}

// threads says how the processors of a machine run: each on a thread, or in turns where they are a crowd, or a QEMU is
// too old for that. It runs the QEMU to ask, unless there is but one.
func threads(path string, p platform, s vm.Spec) (string, error) {
	switch cpus := s.Topology.CPUs(); {
	case cpus == 1:
		return "multi", nil
	case Crowded(cpus, s.Pin):
		return "single", nil
	}
	_, r, err := checkVersion(path, p)
	if err != nil {
		return "", err
	}
	if r.before(threadsWork) {
		return "single", nil
	}
	return "multi", nil
}

// checkVersion runs a QEMU for its version; ErrTooOld where that does not work here.
func checkVersion(path string, p platform) (version string, r release, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", r, vm.Unavailable(fmt.Errorf("%s --version: %w", path, err))
	}
	line, _, _ := strings.Cut(string(out), "\n")
	_, version, _ = strings.Cut(line, "version ")
	version, _, _ = strings.Cut(version, " ")
	if n, _ := fmt.Sscanf(version, "%d.%d", &r.major, &r.minor); n != 2 {
		return "", r, vm.Unavailable(fmt.Errorf("%s --version says %.80q", path, line))
	}
	if r.before(oldest) {
		return version, r, vm.Unavailable(fmt.Errorf("%w: %s is %s, the oldest that works is %v; %s", ErrTooOld, path,
			version, oldest, howToInstall(p)))
	}
	return version, r, nil
}

// Package returns the name of the package that has the emulator for a board, for one of the package managers apt, dnf,
// pacman and apk; "" if there is none.
func Package(board vm.Board, manager string) string {
	p, err := platformOf(board)
	if err != nil {
		return ""
	}
	return p.packages()[manager]
}

// howToInstall says which package has a platform's emulator, for the package manager that is here.
func howToInstall(p platform) string {
	packages := p.packages()
	managers := []string{"apt", "dnf", "pacman", "apk"}
	var all []string
	for _, m := range managers {
		command := map[string]string{"apt": "apt install ", "dnf": "dnf install ", "pacman": "pacman -S ",
			"apk": "apk add "}[m] + packages[m]
		if _, err := exec.LookPath(m); err == nil {
			return "install it: " + command
		}
		all = append(all, command)
	}
	return "install it: " + strings.Join(all, ", or ")
}
