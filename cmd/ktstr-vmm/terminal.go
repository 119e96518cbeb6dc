package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// wantsColour reports whether w is a terminal whose user has not set NO_COLOR.
func wantsColour(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && isTerminal(w)
}

// isTerminal reports whether w is a terminal that acts on control sequences.
func isTerminal(w io.Writer) bool { return os.Getenv("TERM") != "dumb" && isTTY(w) }

// isTTY reports whether what is read from or written to is a terminal of any kind.
func isTTY(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
