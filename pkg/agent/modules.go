package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
)

// loadModules loads the kernel modules of the job. One that is loaded already is no error: the kernel may have asked
// for it itself.
func (a *agent) loadModules() error {
	if len(a.job.Modules) == 0 {
		return nil
	}
	log := a.openKernelLog()
	defer log.close()
	for _, m := range a.job.Modules {
		if err := a.load(m); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading the kernel module %s: %w%s", m.Path, err, log.words())
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

// kernelLog is the kernel's log from its opening on; negative where there is none. Linux,
// Documentation/ABI/testing/dev-kmsg.
type kernelLog int

func (a *agent) openKernelLog() kernelLog {
	fd, err := unix.Open(a.path("/dev/kmsg"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	_, _ = unix.Seek(fd, 0, io.SeekEnd)
	return kernelLog(fd)
}

func (l kernelLog) close() {
	if l >= 0 {
		unix.Close(int(l))
	}
}

// words returns what was logged, up to a limit, for the end of an error; "" if nothing was. A read returns one record:
// its text is between a semicolon and a line's end.
func (l kernelLog) words() string {
	const most = 20
	words := ""
	record := make([]byte, 8<<10)
	for range most {
		n, err := unix.Read(int(l), record)
		if err != nil || n == 0 {
			break
		}
		_, text, _ := strings.Cut(string(record[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		words += "; the kernel says: " + text
	}
	return words
}
