// Command cmd runs a program in a bed, with the kernel under test as /kernel, and ends as the
// program does.
//
//	cmd [-host NAME] [-add HOST[:GUEST]]... [-program PATH]... KERNEL PROGRAM [ARG...]
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ktstr/ktstr-vmm/test/bed"
)

func main() {
	b := bed.Bed{Host: bed.Hosts["x86_64"], Files: map[string]string{}}
	flag.Func("host", strings.Join(slices.Sorted(maps.Keys(bed.Hosts)), ", "), func(s string) error {
		var ok bool
		if b.Host, ok = bed.Hosts[s]; !ok {
			return fmt.Errorf("there is no host %q", s)
		}
		return nil
	})
	flag.Func("add", "HOST[:GUEST], a file or a folder", func(s string) error {
		from, to, ok := strings.Cut(s, ":")
		if !ok {
			to = from
		}
		b.Files[to] = from
		return nil
	})
	flag.Func("program", "a program with its libraries", func(s string) error {
		b.Programs = append(b.Programs, s)
		return nil
	})
	flag.Parse()
	if flag.NArg() < 2 {
		fmt.Fprintln(os.Stderr, "usage: cmd [-host NAME] [-add HOST[:GUEST]]... [-program PATH]... KERNEL PROGRAM [ARG...]")
		os.Exit(2)
	}
	program := "/bin/" + filepath.Base(flag.Arg(1))
	b.Files["/kernel"], b.Files[program] = flag.Arg(0), flag.Arg(1)
	c := bed.Command{Args: append([]string{program}, flag.Args()[2:]...), Output: os.Stdout}
	if err := b.Run(context.Background(), []*bed.Command{&c}, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "bed: %v\n", err)
		os.Exit(2)
	}
	os.Exit(c.Code)
}
