package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// guardCommand is the name of the hidden command that is a guard.
const guardCommand = "restore-terminal"

// guard is a process that gives a terminal its settings back if this one ends and has not: by a panic, or killed.
type guard struct {
	pipe *os.File
}

// guarded are a terminal's settings: what it is to have again, and what this program has made of it.
type guarded struct{ Saved, Raw unix.Termios }

// startGuard starts one.
func startGuard(terminal *os.File, settings guarded) (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", guardCommand)
	cmd.Stdin, cmd.ExtraFiles = terminal, []*os.File{r}
	// In a group of its own, what is typed on the terminal ends it as little as its parent.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	go func() { _ = cmd.Wait() }()
	g := &guard{pipe: w}
	if err := binary.Write(w, binary.NativeEndian, settings); err != nil {
		w.Close()
		return nil, err
	}
	return g, nil
}

// release ends the guard: the terminal has its settings.
func (g *guard) release() {
	_, _ = g.pipe.Write([]byte{1}) // it may have been killed
	_ = g.pipe.Close()
}

func restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:    guardCommand,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// Not in the terminal's foreground, it may set it only if it ignores SIGTTOU: tcsetattr(3).
			signal.Ignore(syscall.SIGTTOU, syscall.SIGTTIN, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
			return restoreWhenOver(os.NewFile(3, "pipe"), os.Stdin)
		},
	}
}

// restoreWhenOver waits for the end of a pipe. If that is all that comes behind the settings, the terminal gets those
// that were saved; unless it has others already, such as those of the shell whose prompt is next.
func restoreWhenOver(pipe io.Reader, terminal *os.File) error {
	text, err := io.ReadAll(pipe)
	if err != nil {
		return err
	}
	var settings guarded
	in := bytes.NewReader(text)
	if err := binary.Read(in, binary.NativeEndian, &settings); err != nil || in.Len() > 0 {
		return err
	}
	fd := int(terminal.Fd())
	now, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || *now != settings.Raw {
		return err
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, &settings.Saved)
}
