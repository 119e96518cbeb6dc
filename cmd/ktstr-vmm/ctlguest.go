package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// typeAll types what comes from a file, and its end as a terminal's user does: a Ctrl-D, or two behind a line that has
// no end, which the first one only passes on (termios(3), VEOF). It fails if the file can't be read.
func typeAll(to io.Writer, from io.Reader) error {
	buf, last := make([]byte, 32<<10), byte('\n')
	for {
		n, err := from.Read(buf)
		if n > 0 {
			last = buf[n-1]
			if _, err := to.Write(buf[:n]); err != nil {
				return nil // the shell is over
			}
		}
		if err == nil {
			continue
		}
		end := []byte{'D' - '@', 'D' - '@'}
		if last == '\n' {
			end = end[1:]
		}
		_, _ = to.Write(end) // the shell may be over
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			err = nil
		}
		return err
	}
}

func (o *ctlOptions) registers() *cobra.Command {
	var asJSON bool
	var file string
	c := &cobra.Command{
		Use:   "registers",
		Short: "Print what is in the registers of the guest's CPUs",
		Long: `Print what is in the registers of the guest's CPUs, which go on.

Functions of a Linux kernel have their names: as the run knows them, or as they are in the
vmlinux or System.map that --symbols names, for a kernel that runs where it was linked.`,
		RunE: func(c *cobra.Command, _ []string) error {
			var names *introspect.Symbols
			if file != "" {
				read, err := readSymbols(file)
				if err != nil {
					return fmt.Errorf("--symbols: %w", err)
				}
				names = &read
			}
			return o.ask(c, func(ctx context.Context, run asked) error {
				all, name, err := run.Registers(ctx)
				if err != nil {
					return err
				}
				if names != nil {
					name = names.Name
				}
				return printRegisters(c.OutOrStdout(), all, name, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&file, "symbols", "", "the vmlinux or System.map of the guest's kernel")
	return c
}

func printRegisters(w io.Writer, all []vm.Registers, name func(uint64) string, asJSON bool) error {
	if asJSON {
		return report.EncodeJSON(w, report.RegistersJSON(all, name))
	}
	return report.WriteRegisters(w, all, name)
}

// readSymbols reads the symbols of a kernel from its vmlinux or System.map.
func readSymbols(path string) (introspect.Symbols, error) {
	file, err := os.Open(path)
	if err != nil {
		return introspect.Symbols{}, err
	}
	defer file.Close()
	magic := make([]byte, 4)
	_, _ = file.ReadAt(magic, 0) // what is shorter is none of both
	var k *introspect.Kernel
	if string(magic) == "\x7fELF" {
		k, err = introspect.ReadVmlinux(file)
	} else {
		k, err = introspect.ReadSystemMap(file)
	}
	if k == nil || err != nil && !errors.Is(err, introspect.ErrTypes) {
		return introspect.Symbols{}, fmt.Errorf("%s: %w", path, err)
	}
	return k.Symbols(), nil
}

func (o *ctlOptions) shell() *cobra.Command {
	return &cobra.Command{
		Use:   "shell [flags] [-- COMMAND ARG...]",
		Short: "Start a shell in the guest, or another command, on a terminal of its own",
		Long: `Start a shell in the guest, or another command, on a terminal of its own.

On a terminal its keys are the guest's: Ctrl-A x leaves, and the run goes on; Ctrl-A h shows
that. Otherwise stdin is what is typed, to its end, and then a Ctrl-D. The exit code is the
shell's.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && c.ArgsLenAtDash() != 0 {
				return fmt.Errorf("shell: what runs in the guest is behind --, as in ktstr-vmm ctl shell -- %s", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			run, err := o.find(ctx)
			if ctx.Err() != nil {
				return &exitError{code: codeLeft}
			}
			if err != nil {
				return err
			}
			v := &visit{out: c.OutOrStdout(), err: c.ErrOrStderr()}
			code, err := v.start(ctx, run.Client, c.InOrStdin(), args)
			switch {
			case errors.Is(err, context.Canceled), errors.Is(err, syscall.EPIPE):
				return &exitError{code: codeLeft}
			case err != nil:
				return run.failed(err)
			case code != 0:
				return &exitError{code: code}
			}
			return nil
		},
	}
}

// codeLeft is the exit code of who leaves a shell before its end: that of a program that was hung up.
const codeLeft = 128 + int(syscall.SIGHUP)

// visit is a session in a guest that somebody else runs, at this process's stdin and stdout.
type visit struct {
	out, err io.Writer
	raw      atomic.Bool
}

// start starts a command in the guest, or its shell, and returns its exit code when it has ended. It fails with
// context.Canceled if the user has left it.
func (v *visit) start(ctx context.Context, client control.Client, stdin io.Reader, args []string) (int, error) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	program := call.Program{Args: args, Term: os.Getenv("TERM")}
	file, _ := stdin.(*os.File)
	terminal := file != nil && isAnyTerminal(file)
	if terminal {
		size := windowSize(file)
		program.Rows, program.Cols = size.Rows, size.Cols
	}
	shell, err := client.Shell(ctx, program)
	if err != nil {
		return 0, err
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer shell.Close()
	connect := v.pipe
	if terminal {
		connect = v.keys
	}
	giveBack, err := connect(file, shell, leave)
	if err != nil {
		return 0, err
	}
	defer giveBack()
	all.Go(func() { whileRead(ctx, v.out, leave) })
	defer leave()
	return v.show(ctx, shell)
}

// show shows the session to its end.
func (v *visit) show(ctx context.Context, shell *control.Shell) (int, error) {
	out := report.NewStream(v.out)
	err := showShell(ctx, out, shell)
	lost := out.Close(ctx) // as long as somebody reads it
	if ctx.Err() != nil {
		return 0, context.Canceled
	}
	if err != nil {
		return 0, err
	}
	code, err := shell.Wait()
	if err == nil {
		err = lost
	}
	return code, err
}

// keys types a terminal's keys, until what it returns gives the terminal back.
func (v *visit) keys(file *os.File, shell *control.Shell, leave func()) (giveBack func(), err error) {
	stderr := io.Writer(v.err)
	if isTerminal(stderr) {
		stderr = &lineEnds{w: stderr, raw: &v.raw}
	}
	t := &guestTerminal{
		file: file, raw: &v.raw, leaving: "the run goes on", interrupt: func(string) { leave() },
		say: func(format string, args ...any) { fmt.Fprintf(stderr, format, args...) },
	}
	typed := newKeys()
	sizes := make(chan call.WindowSize, 1) // the latest one: who reads the keys does not wait for the run to take it
	t.give(typed, func(size call.WindowSize) {
		select {
		case <-sizes:
		default:
		}
		sizes <- size
	}, nil)
	if err := t.makeRaw(); err != nil {
		return nil, fmt.Errorf("the terminal can't be the guest's: %w", err)
	}
	var all sync.WaitGroup
	all.Go(func() { _, _ = io.Copy(shell, typed) }) // until the keys or the shell end
	all.Go(func() {
		for size := range sizes {
			_ = shell.Resize(size.Rows, size.Cols) // the shell may be over
		}
	})
	return func() {
		_ = shell.Close()
		t.close()
		close(sizes)
		all.Wait()
	}, nil
}

// pipe types what comes from a file, and then its end.
func (v *visit) pipe(file *os.File, shell *control.Shell, _ func()) (giveBack func(), err error) {
	in := io.Reader(strings.NewReader(""))
	stop := func() {}
	if file != nil && !isNull(file) {
		r, err := newPollReader(file)
		if err != nil {
			return nil, err
		}
		in, stop = r, r.Close
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := typeAll(shell, in); err != nil {
			fmt.Fprintf(v.err, "ktstr-vmm: what is typed ends early: %v\n", err)
		}
	}()
	return func() {
		_ = shell.Close()
		stop()
		<-done
	}, nil
}
