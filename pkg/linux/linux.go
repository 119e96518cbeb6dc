// Package linux describes a machine that boots a Linux kernel to run one command: the kernel, an
// initramfs made on the fly with the agent as its first process, and the kernel's command line.
package linux

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Cmdline is what a kernel gets beside the ring's parameters: a console, a reset that the host
// sees, and nothing that waits for hardware which is not there. Linux's
// Documentation/admin-guide/kernel-parameters.txt has what each means.
func Cmdline(arch string) string { return cmdlines[arch] + " " + everywhere }

const everywhere = "quiet rdinit=/init panic=-1 oops=panic nokaslr mitigations=off random.trust_cpu=on iomem=relaxed " +
	"cryptomgr.notests"

var cmdlines = map[string]string{
	"x86_64": "console=ttyS0 reboot=k no_timer_check pci=off",
	"arm64":  "console=ttyAMA0",
}

// path is PATH in the guest.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Guest is a Linux guest and its command. Every field except Kernel and Command may be left zero.
type Guest struct {
	Kernel  string   // a kernel's file, or the folder of one, as kernel.Find takes them
	Command []string // a program, as a shell finds it on this host, and its arguments

	Modules   []string // 'NAME [PARAM=VALUE...]': kernel modules that are loaded before anything is started
	Include   []string // SRC or SRC:DST: what else the guest gets; a DST that ends in / is its folder
	Env       []string // NAME=VALUE, in the command's environment
	Scheduler []string // the scheduler under test and its arguments; empty: the kernel's own
	// SchedulerWait is how long it may take to become the scheduler; 0: the agent's default.
	SchedulerWait time.Duration
	TTY           bool   // the command gets a controlling terminal
	Window        Window // the size of its window
	Stdin         bool   // the command's stdin is what the host answers; else there is none
	Prompt        bool   // if the command fails, the guest asks the host before it ends; and it has a shell
	OneOutput     bool   // the command's stdout and stderr are one, in the order in which it writes
	Verbose       bool   // the kernel prints all of its messages
	Initrd        string // path of a base initramfs, to which the one made here is added; "": none
	Sysroot       string // folder in which programs and the files that they need are looked up; "": this host's root

	// Reservation is how an arm64 kernel is kept off the ring.
	Reservation fdt.Reservation

	// OnLeftOut hears of all that Include names and that is left out of the guest, and why; nil: nobody does.
	OnLeftOut func(what string)

	Append      string // what is added to Cmdline
	CmdlineOnly string // what replaces it, and Append; "": nothing
}

// Window is the size of a terminal's window, in characters; 0: 24 rows of 80 columns.
type Window = agentproto.Window

// shell is what a guest has for a prompt, or else a busybox.
const shell = "/bin/sh"

// FieldError says which field of a Guest can't be used, and why.
type FieldError struct {
	Field string // its name in Guest
	Value string // what a message shows of its value; "" if Err names it
	Err   error  // why
}

// Error returns the field, its value and why it can't be used.
func (e *FieldError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%s: %v", e.Field, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Field, e.Value, e.Err)
}

// Unwrap returns Err.
func (e *FieldError) Unwrap() error { return e.Err }

// Config returns the machine's configuration, and files, to be closed when the machine is built. It fails with a
// *FieldError if a field can't be used.
func (g Guest) Config() (cfg vm.Config, files io.Closer, err error) {
	var open closers
	defer func() {
		if err != nil {
			open.Close()
		}
	}()
	if len(g.Command) == 0 {
		return cfg, nil, &FieldError{Field: "Command", Err: errors.New("there is none")}
	}
	found, err := kernel.Find(g.Kernel)
	var file *os.File
	if err == nil {
		file, err = os.Open(found.Image)
	}
	if errors.Is(err, kernel.ErrNotFound) || errors.Is(err, kernel.ErrAmbiguous) {
		return cfg, nil, &FieldError{"Kernel", g.Kernel, err}
	}
	if err != nil {
		return cfg, nil, &FieldError{Field: "Kernel", Err: err}
	}
	open = append(open, file)
	cfg.Kernel, err = kernel.Open(file, kernel.Options{Reservation: g.Reservation})
	if err != nil {
		return cfg, nil, &FieldError{"Kernel", g.Kernel, err}
	}
	modules, err := found.LoadOrder(g.Modules)
	if err != nil {
		return cfg, nil, &FieldError{Field: "Modules", Err: err}
	}
	archive, err := g.archive(cfg.Kernel.Board().Arch(), modules)
	if err != nil {
		return cfg, nil, err
	}
	if g.Initrd != "" {
		f, err := os.Open(g.Initrd)
		if err != nil {
			return cfg, nil, &FieldError{Field: "Initrd", Err: err}
		}
		open = append(open, f)
		info, err := f.Stat()
		if err != nil {
			return cfg, nil, &FieldError{Field: "Initrd", Err: err}
		}
		if !info.Mode().IsRegular() {
			return cfg, nil, &FieldError{"Initrd", g.Initrd, errors.New("it is no plain file")}
		}
		if err := archive.SetBase(f, uint64(info.Size())); err != nil {
			return cfg, nil, &FieldError{"Initrd", g.Initrd, err}
		}
	}
	if g.OnLeftOut != nil {
		for _, what := range archive.LeftOut() {
			g.OnLeftOut(what)
		}
	}
	cfg.Initrd = archive
	cfg.Cmdline = g.cmdline(cfg.Kernel.Board().Arch())
	return cfg, open, nil
}

func (g Guest) cmdline(arch string) string {
	if g.CmdlineOnly != "" {
		return g.CmdlineOnly
	}
	words := []string{Cmdline(arch)}
	if g.Verbose {
		words = append(words, "loglevel=7")
	}
	if g.Append != "" {
		words = append(words, g.Append)
	}
	return strings.Join(words, " ")
}

type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, f := range c {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// archive is the initramfs of a guest of an architecture, with modules for its kernel.
func (g Guest) archive(arch string, modules []kernel.Module) (*initramfs.Archive, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	init, err := guest.Agent(arch)
	if err != nil {
		return nil, err
	}
	a := initramfs.New()
	a.Arch = arch
	if a.Sysroot, err = g.sysroot(); err != nil {
		return nil, err
	}
	a.AddBytes("/init", init, 0o755)
	env, err := g.environment()
	if err != nil {
		return nil, err
	}
	a.LibraryPath = valueOf(env, "LD_LIBRARY_PATH")
	program, err := addCommand(a, g.Command[0])
	if err != nil {
		return nil, &FieldError{Field: "Command", Err: err}
	}
	if data := filepath.Join(dir, "testdata"); isGoTest(program) && isDir(data) {
		if err := a.AddTree(data, data); err != nil {
			return nil, err
		}
	}
	j := agentproto.Job{
		Args: append([]string{program}, g.Command[1:]...), Env: env, Dir: dir,
		TTY: g.TTY, Window: g.Window, Stdin: g.Stdin, Prompt: g.Prompt, OneOutput: g.OneOutput,
		OpenFiles: callersOpenFiles(),
	}
	if g.Prompt {
		if err := addShell(a); err != nil {
			return nil, &FieldError{Field: "Prompt", Err: err}
		}
	}
	for _, m := range modules {
		path := agentproto.ModulesDir + "/" + m.Name + ".ko"
		a.AddBytes(path, m.Content, 0o644)
		j.Modules = append(j.Modules, agentproto.Module{Path: path, Params: m.Params})
	}
	if len(g.Scheduler) > 0 {
		a.Dir = "/" // where the agent starts it
		scheduler, err := addCommand(a, g.Scheduler[0])
		if err != nil {
			return nil, &FieldError{Field: "Scheduler", Err: err}
		}
		a.Dir = "" // where the command and what it starts begin
		j.Scheduler = append([]string{scheduler}, g.Scheduler[1:]...)
		j.SchedulerWait = g.SchedulerWait
	}
	if err := g.addIncluded(a); err != nil {
		return nil, err
	}
	a.AddText(agentproto.JobPath, j.Encode(), 0o644)
	return a, nil
}

// sysroot is the absolute path of Sysroot.
func (g Guest) sysroot() (string, error) {
	if g.Sysroot == "" {
		return "", nil
	}
	if !isDir(g.Sysroot) {
		return "", &FieldError{"Sysroot", g.Sysroot, errors.New("there is no such folder")}
	}
	return filepath.Abs(g.Sysroot)
}

var errInclude = errors.New("it is SRC, which has the same path in the guest, or SRC:DST; neither can be empty")

// addIncluded adds what Include names, and the libraries of the programs among it, of which what is included counts.
func (g Guest) addIncluded(a *initramfs.Archive) error {
	included := make([]struct{ src, dst string }, len(g.Include))
	for i, include := range g.Include {
		src, dst, ok := strings.Cut(include, ":")
		if src == "" || ok && dst == "" {
			return &FieldError{"Include", include, errInclude}
		}
		src, err := filepath.Abs(src)
		if err != nil {
			return err
		}
		switch {
		case !ok:
			dst = src
		case strings.HasSuffix(dst, "/") && !isDir(src):
			dst += filepath.Base(src)
		}
		if isProgram(src) {
			if err := a.AddLibraries(src); err != nil {
				return &FieldError{"Include", include, err}
			}
		}
		included[i].src, included[i].dst = src, dst
	}
	for i, include := range g.Include {
		if err := a.AddTree(included[i].src, included[i].dst); err != nil {
			return &FieldError{"Include", include, err}
		}
	}
	return nil
}

// callersOpenFiles is how many files a program may have open that this process's parent starts: Go has
// raised this process's own limit.
func callersOpenFiles() agentproto.Limit {
	var l unix.Rlimit
	if err := unix.Prlimit(os.Getppid(), unix.RLIMIT_NOFILE, nil, &l); err != nil { // it is another user's
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			return agentproto.Limit{}
		}
	}
	return agentproto.Limit{Soft: l.Cur, Hard: l.Max}
}

// environment is the command's.
func (g Guest) environment() ([]string, error) {
	env := []string{"PATH=" + path, "HOME=/root", "TERM=" + os.Getenv("TERM")}
	for _, e := range g.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return nil, &FieldError{"Env", strconv.Quote(e), errors.New("it is NAME=VALUE")}
		}
		env = append(env, e)
	}
	return env, nil
}

// valueOf is a variable's value in an environment, where the last one counts; "" where it has none.
func valueOf(env []string, name string) (value string) {
	for _, e := range env {
		if n, v, _ := strings.Cut(e, "="); n == name {
			value = v
		}
	}
	return value
}

// addCommand adds a program and returns its path in the guest. One that is not here may be in the
// guest's base or what it includes; where it is not, the guest says so: 127.
func addCommand(a *initramfs.Archive, name string) (string, error) {
	path, err := a.LookPath(name)
	if err != nil {
		return name, nil
	}
	_, err = os.Stat(path)
	_, errBelow := os.Lstat(filepath.Join(a.Sysroot, path)) // a link there leads to somewhere else in the guest
	if errors.Is(err, fs.ErrNotExist) && errors.Is(errBelow, fs.ErrNotExist) {
		return path, nil
	}
	return path, a.AddProgram(path)
}

// addShell adds a shell. If there is none for the guest, its base or what it includes may have one.
func addShell(a *initramfs.Archive) error {
	if _, err := os.Lstat(filepath.Join(a.Sysroot, shell)); err == nil {
		return a.AddProgram(shell)
	}
	if path, err := a.LookPath("busybox"); err == nil {
		return a.AddProgram(path)
	}
	return nil
}

// isGoTest reports whether a program is what go test builds: its main package is named so.
func isGoTest(program string) bool {
	info, err := buildinfo.ReadFile(program)
	return err == nil && strings.HasSuffix(info.Path, ".test")
}

// isProgram reports whether a path is that of a plain file that may be executed.
func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
