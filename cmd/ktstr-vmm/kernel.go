package main

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/configs"
)

func kernelCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "kernel",
		Short: "Help to build a kernel for guests",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use:               "config [NAME...]",
		Short:             "Print fragments for merge_config.sh: guest, the least, and sched_ext; both where none is named",
		ValidArgsFunction: completeFragment,
		RunE: func(c *cobra.Command, names []string) error {
			if len(names) == 0 {
				names = []string{"guest", "sched_ext"}
			}
			text, err := fragments(names)
			if err == nil {
				_, err = c.OutOrStdout().Write(text)
			}
			return err
		},
	})
	return c
}

// fragments returns the fragments of these names, one behind the other.
func fragments(names []string) ([]byte, error) {
	var text []byte
	for _, name := range names {
		fragment, err := configs.Kernel.ReadFile("kernel/" + name + ".config")
		if err != nil {
			paths, err := fs.Glob(configs.Kernel, "kernel/*")
			if err != nil {
				return nil, err
			}
			known := strings.NewReplacer("kernel/", "", ".config", "").Replace(strings.Join(paths, ", "))
			return nil, fmt.Errorf("%q is no fragment; there are %s", name, known)
		}
		text = append(text, fragment...)
	}
	return text, nil
}
