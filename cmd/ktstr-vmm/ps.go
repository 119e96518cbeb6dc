package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/report"
)

func psCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "ps",
		Short: "List the runs of this user that are going on",
		Long: `List the runs of this user that are going on: those that have their sockets in
$XDG_RUNTIME_DIR/ktstr-vmm, as is the default of --control; root's are in /run/ktstr-vmm
if the variable names no folder of root's. Long names are shortened; not with --json.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			found, err := control.List(c.Context(), "")
			if err != nil {
				return err
			}
			show := psTable
			if asJSON {
				show = psJSON
			}
			return show(c.OutOrStdout(), found)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON: an array of what \"ctl status --json\" prints")
	return c
}

// psJSON prints the runs that have answered.
func psJSON(w io.Writer, found []control.Found) error {
	all := []*control.Status{}
	for _, f := range found {
		if f.Status != nil {
			all = append(all, f.Status)
		}
	}
	return report.EncodeJSON(w, all)
}

// psTable prints the runs for people. One that has not answered is about to start, or its process is stopped.
func psTable(w io.Writer, found []control.Found) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tNAME\tKERNEL\tARCH\tACCELERATOR\tPHASE\tELAPSED\tMESSAGES\tDROPS\tPID")
	for _, f := range found {
		s := f.Status
		if s == nil {
			why := "no answer"
			if errors.Is(f.Err, control.ErrBusy) {
				why = "busy"
			}
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\t%s\t-\t-\t-\t-\n", f.ID, why)
			continue
		}
		for _, text := range []string{f.ID, s.Name, s.Kernel, s.Arch, s.Accelerator, s.Phase} {
			fmt.Fprintf(t, "%s\t", shortened(report.Printable(text)))
		}
		fmt.Fprintf(t, "%v of %v\t%d\t%d\t%d\n", seconds(s.Elapsed).Round(time.Second), seconds(s.Timeout),
			s.Messages, s.Drops, s.PID)
	}
	return t.Flush()
}

// maxCell is how many characters of a name ps shows: a command may be of any length, and a run is a line.
const maxCell = 40

func shortened(text string) string {
	if runes := []rune(text); len(runes) > maxCell {
		return string(runes[:maxCell-1]) + "…"
	}
	return text
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
