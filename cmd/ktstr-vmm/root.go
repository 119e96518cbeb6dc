package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

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
	root.Version = version() // so that there is --version
	root.SetVersionTemplate(versionLine())
	root.Flags().Bool("version", false, "print what the command version prints")
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = helpTopic
		case "completion":
			refuseShells(c)
		}
	}
	return root
}

// helpTopic checks what help is asked for: cobra's would print other help, and exit with 0.
func helpTopic(c *cobra.Command, args []string) error {
	found, rest, err := c.Root().Find(args)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("unknown command %q for %q", rest[0], found.CommandPath())
	}
	return err
}

// refuseShells makes completion fail for a shell that it does not know: cobra's would print help, which who asked would
// source.
func refuseShells(c *cobra.Command) {
	var shells []string
	for _, sub := range c.Commands() {
		if sub.Name() == "powershell" { // there is none where this program runs
			c.RemoveCommand(sub)
			continue
		}
		shells = append(shells, sub.Name())
	}
	c.Args = nil
	c.RunE = func(*cobra.Command, []string) error {
		return fmt.Errorf("completion takes a shell: %s", strings.Join(shells, ", "))
	}
}

// noArguments is for commands that take none.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, %q was given",
			strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" "), args[0])
	}
	return nil
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
