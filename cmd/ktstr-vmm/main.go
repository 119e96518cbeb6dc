//go:build !manpages

// Command ktstr-vmm runs a guest in a virtual machine and watches the message ring that the two share.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// Who reads our output may go away; the run goes on, and its exit code is what it is.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr))
}
