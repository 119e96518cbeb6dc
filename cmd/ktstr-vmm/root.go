package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// exitError ends the program with a code; err, where there is one, is printed first.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// say writes a program's last words, and does not wait for ever for who reads them.
func say(w io.Writer, text string) {
	ctx, cancel := context.WithTimeout(context.Background(), run.DefaultFlushLimit)
	defer cancel()
	s := report.NewStream(w)
	_, _ = io.WriteString(s, text)
	_ = s.Close(ctx) // there is no place left to say it
}

// rootCommand is the program's command line.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ktstr-vmm",
		Short: "Run a guest in a virtual machine and watch it through its message ring",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.AddCommand(demoCommand(), runCommand(), inspectCommand(), doctorCommand(), kernelCommand(), suiteCommand(),
		exporterCommand(), psCommand(), ctlCommand(), reportCommand(), versionCommand(), restoreCommand())
	return root
}

// execute runs the program and returns its exit code.
func execute(args []string, stdout, stderr io.Writer) int {
	return executeCommand(rootCommand(), withID(args), stdout, stderr)
}

// executeCommand runs a command and returns the program's exit code. An error is one line on stderr; without
// a code of its own it is the user's or the host's: 125.
func executeCommand(c *cobra.Command, args []string, stdout, stderr io.Writer) int {
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(args)
	c.SetOut(stdout)
	c.SetErr(stderr)
	err := c.Execute()
	if err == nil {
		return 0
	}
	exit := &exitError{code: run.CodeFailed, err: err}
	errors.As(err, &exit)
	if exit.err != nil {
		say(stderr, "ktstr-vmm: "+report.Printable(err.Error())+"\n")
	}
	return exit.code
}
