package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/page"
)

func reportCommand() *cobra.Command {
	formats := []string{"html", "text", "markdown"}
	var format, output, compare string
	c := &cobra.Command{
		Use:   "report FILE|DIR...",
		Short: "Make a page of reports: of runs, and of suites",
		Long: `Make a page of reports: of runs, and of suites.

FILE is the JSON report of a run (--report FILE --report-format json) or a suite's
suite.json; DIR is the results folder of a suite, or a folder of reports. The page is
one file of HTML, which loads nothing from anywhere, or text, or Markdown for the
summary of a CI job. The exit code is 1 if some of it could not be read.`,
		Args:              named("report", "one or more FILE or DIR", 1, 100000),
		ValidArgsFunction: completeReports,
		RunE: func(c *cobra.Command, args []string) error {
			write := map[string]func(*page.Page, io.Writer) error{
				"html":     func(p *page.Page, w io.Writer) error { return p.HTML(w, version()) },
				"text":     (*page.Page).Text,
				"markdown": (*page.Page).Markdown,
			}[format]
			switch {
			case write == nil:
				return fmt.Errorf("--format %q: it is one of html, text, markdown", format)
			case output == "":
				return fmt.Errorf("--output is empty: it is a file, or - for stdout")
			case format == "html" && output == "-" && isTerminal(c.OutOrStdout()):
				return fmt.Errorf("--format html is for a browser, not for a terminal: " +
					"give --output FILE.html, or --format text")
			}
			p, err := page.Read(args, compare)
			if err != nil {
				return err
			}
			if err := writeOutput(c.OutOrStdout(), output, func(w io.Writer) error { return write(p, w) }); err != nil {
				return err
			}
			if len(p.Problems) == 0 {
				return nil
			}
			if p.Unread > 0 {
				p.Problems = append(p.Problems, fmt.Sprintf("and %d more", p.Unread))
			}
			say(c.ErrOrStderr(), "ktstr-vmm: "+strings.Join(p.Problems, "\nktstr-vmm: ")+"\n")
			return &exitError{code: codeBroken}
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&format, "format", "html", "html, text, markdown")
	f.StringVar(&output, "output", "-", "a file for the page, which is replaced; - for stdout")
	f.StringVar(&compare, "compare", "",
		"an earlier results folder or suite.json of the suite: what newly fails comes first")
	mustComplete(c, "format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	mustComplete(c, "compare", completeReports)
	return c
}

// writeOutput writes a file that takes its name when it is whole, or "-", stdout.
func writeOutput(stdout io.Writer, path string, write func(io.Writer) error) error {
	if path == "-" {
		if err := write(stdout); err != nil {
			return fmt.Errorf("writing the page: %w", err)
		}
		return nil
	}
	f, err := openOutput(path)
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	defer f.discard()
	if err := write(f); err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	if err := f.commit(); err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	return nil
}

// completeReports completes JSON files, and folders.
func completeReports(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
}
