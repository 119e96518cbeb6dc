package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/configs"
	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/config"
)

// completion is what a shell is told of a word that is begun.
type completion = func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective)

// paths are the settings that are files or folders, which shells complete by themselves.
var paths = []string{"initrd", "sysroot", "include", "scheduler", "console", "report", "ring", "metrics-textfile",
	"control"}

// completeSettings makes shells complete the values of a command's settings.
func completeSettings(c *cobra.Command, settings []*config.Setting) {
	for _, x := range settings {
		if x.NoFlag {
			continue
		}
		complete := cobra.FixedCompletions(x.Words, cobra.ShellCompDirectiveNoFileComp) // of most there is nothing to say
		switch {
		case x.Name == "kernel":
			complete = completeKernel
		case x.Name == "scenario":
			complete = completeScenario
		case x.List() && x.Words != nil:
			complete = completeList(x.Words)
		case slices.Contains(paths, x.Name):
			continue
		}
		mustComplete(c, x.Name, complete)
	}
}

// mustComplete sets a flag's completion. That fails for a flag that there is not, or that has one.
func mustComplete(c *cobra.Command, flag string, complete completion) {
	if err := c.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err)
	}
}

// kernelFiles are where kernels are, beside those that their users build: of the system, and of the tests' cache.
func kernelFiles() (patterns []string) {
	patterns = []string{"/boot/vmlinuz-*", "/lib/modules/*/vmlinuz"}
	if cache, err := os.UserCacheDir(); err == nil {
		dir := filepath.Join(cache, "ktstr-vmm", "linux-*")
		patterns = append(patterns, filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "Image"),
			filepath.Join(dir, "arch", "x86", "boot", "bzImage"))
	}
	return patterns
}

// completeKernel completes kernels that there are. A path that none of them begins with is for the shell to complete.
func completeKernel(_ *cobra.Command, _ []string, begun string) (found []string, _ cobra.ShellCompDirective) {
	for _, pattern := range kernelFiles() {
		files, _ := filepath.Glob(pattern) // fails for bad patterns alone
		for _, file := range files {
			if strings.HasPrefix(file, begun) {
				found = append(found, file)
			}
		}
	}
	return found, cobra.ShellCompDirectiveDefault
}

// completeScenario completes a scenario's name, and behind a comma its parameters'.
func completeScenario(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	i := strings.LastIndexByte(begun, ',')
	if i < 0 {
		return guest.Scenarios, cobra.ShellCompDirectiveNoFileComp
	}
	var all []string
	for _, p := range guest.Parameters {
		all = append(all, begun[:i+1]+p+"=")
	}
	return all, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeList completes the last word of a list with commas.
func completeList(words []string) completion {
	return func(_ *cobra.Command, _ []string, begun string) (all []string, _ cobra.ShellCompDirective) {
		before := begun[:strings.LastIndexByte(begun, ',')+1]
		for _, w := range words {
			all = append(all, before+w)
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFragment completes the names of fragments of kernel configurations.
func completeFragment(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
	files, _ := fs.Glob(configs.Kernel, "kernel/*") // fails for bad patterns alone
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".config"))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeYAML completes YAML files.
func completeYAML(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

// completeFolders completes folders.
func completeFolders(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}
