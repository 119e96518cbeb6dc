package linux

import (
	"debug/buildinfo"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

// Name names the guest for reports: by a Go test's package, which go test runs by a name that others have too, else
// by its command.
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
