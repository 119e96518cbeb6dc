package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/config"
)

// options are what a command that runs a guest is told.
type options struct {
	*config.Settings

	files []string // config files

	// linux is for guests that run a command under Linux: the command's output is ours, and nothing
	// else is shown unless something went wrong.
	linux bool
	input input // of its command
}

func newOptions(c config.Command) *options {
	return &options{Settings: config.New(c), linux: c == config.Run}
}

// register makes the settings a command's flags.
func (o *options) register(c *cobra.Command) {
	f := c.Flags()
	f.SortFlags = false
	for _, x := range o.All() {
		if !x.NoFlag {
			x.Source = "--" + x.Name
			f.AddFlag(x.Flag)
		}
	}
	f.StringArrayVar(&o.files, "config", nil, "a YAML file with settings by the names of these flags, which go before "+
		"it; "+config.EnvPrefix+"… in the environment does, too")
	completeSettings(c, o.All())
	mustComplete(c, "config", completeYAML)
}

// load takes what flags left unsaid from the environment and the files, and judges all values.
func (o *options) load() error {
	files, from := o.files, "--config"
	if name := os.Getenv(config.EnvConfig); name != "" && len(files) == 0 {
		files, from = []string{name}, config.EnvConfig
	}
	if err := o.Load(files, os.Environ()); err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = fmt.Errorf("%s: %w", from, err)
		}
		return err
	}
	return o.Check()
}
