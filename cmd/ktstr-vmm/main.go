// Command ktstr-vmm runs a guest under KVM and watches the message ring that they share.
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
