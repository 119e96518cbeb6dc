package linux

import (
	"debug/buildinfo"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

// Name returns the guest's name for reports: a Go test's package, because other packages' tests can have the same file
// name, otherwise the command.
func (g Guest) Name() string {
	if len(g.Command) == 0 {
		return ""
	}
	if path, err := initramfs.LookPath(g.Command[0]); err == nil {
		if info, err := buildinfo.ReadFile(path); err == nil {
			if pkg, ok := strings.CutSuffix(info.Path, ".test"); ok {
				return pkg
			}
		}
	}
	return strings.Join(g.Command, " ")
}
