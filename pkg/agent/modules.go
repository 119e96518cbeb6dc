package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
)

// loadModules loads the kernel modules of the job. One that is loaded already is no error: the kernel may have asked
// for it itself.
func (a *agent) loadModules() error {
	if len(a.job.Modules) == 0 {
		return nil
	}
	log, err := openKernelLog(a.path(logDevice))
	if err == nil {
		defer log.close()
	}
	for _, m := range a.job.Modules {
		if err := a.load(m); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading the kernel module %s: %w%s", m.Path, err, moduleWords(log))
		}
	}
	return nil
}

func (a *agent) load(m agentproto.Module) error {
	f, err := os.Open(a.path(m.Path))
	if err != nil {
		return err
	}
	defer f.Close()
	return a.kernel.loadModule(int(f.Fd()), m.Params, 0)
}

// moduleWords returns what was logged, up to a limit, for the end of an error; "" if nothing was, or there is no log.
func moduleWords(log *kernelLog) (words string) {
	if log == nil {
		return ""
	}
	most := 20
	log.read(func(l logLine) {
		if most--; most >= 0 {
			words += "; the kernel says: " + l.text
		}
	})
	return words
}
