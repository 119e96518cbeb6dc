//go:build manpages

package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// main writes a man page for each command into a folder, which packages get:
//
//	go run -tags manpages ./cmd/ktstr-vmm DIR
//
// SOURCE_DATE_EPOCH is their date. It is no command of the program, which would carry the writer with it.
func main() {
	if err := writeManPages(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "manpages: %v\n", err)
		os.Exit(1)
	}
}

func writeManPages(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("it takes the folder to write into, %d arguments were given", len(args))
	}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH %q: it has to be the commit's date in seconds since 1970", epoch)
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return err
	}
	date := time.Unix(seconds, 0).UTC()
	root := rootCommand()
	root.InitDefaultCompletionCmd()
	unsign(root)
	return doc.GenManTree(root, &doc.GenManHeader{
		Section: "1", Date: &date, Source: "ktstr-vmm", Manual: "ktstr-vmm's commands",
	}, args[0])
}

// unsign leaves out what wrote the pages, and when.
func unsign(c *cobra.Command) {
	c.DisableAutoGenTag = true
	for _, sub := range c.Commands() {
		unsign(sub)
	}
}
