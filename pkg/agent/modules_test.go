package agent

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Modules are loaded in the job's order, before anything is started; one that is loaded already is no error.
func TestModules(t *testing.T) {
	j := shellJob("echo command")
	j.Modules = []agentproto.Module{{Path: "/m/a.ko", Params: "x=1 y=2"}, {Path: "/m/b.ko"}, {Path: "/m/c.ko"}}
	g := newGuestFor(t, j)
	var loaded []string
	for _, name := range []string{"a", "b", "c"} {
		g.write("/m/"+name+".ko", name)
	}
	g.agent.kernel.loadModule = func(fd int, params string, flags int) error {
		text, err := io.ReadAll(os.NewFile(uintptr(dup(t, fd)), "module"))
		loaded = append(loaded, string(text)+" "+params)
		if string(text) == "b" {
			return unix.EEXIST
		}
		return errors.Join(err, map[bool]error{true: unix.EINVAL}[flags != 0])
	}
	got := g.boot()
	if want := []string{"a x=1 y=2", "b ", "c "}; !slices.Equal(loaded, want) {
		t.Errorf("%q, want %q", loaded, want)
	}
	if out := output(shm.Stdout, got); out != "command\n" {
		t.Errorf("%q", got)
	}
}

// One that can't be loaded ends the run, with what the kernel logged of it.
func TestModuleFails(t *testing.T) {
	j := shellJob("echo command")
	j.Modules = []agentproto.Module{{Path: "/m/a.ko"}, {Path: "/m/b.ko"}}
	g := newGuestFor(t, j)
	g.write("/m/a.ko", "a")
	g.write("/m/b.ko", "b")
	g.write("/dev/kmsg", "6,1,2,-;before\n")
	g.agent.kernel.loadModule = func(int, string, int) error {
		log, err := os.OpenFile(g.path("/dev/kmsg"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer log.Close()
		_, err = log.WriteString("3,2,3,-;a: Unknown symbol b (err -2)\n SUBSYSTEM=x\n")
		return errors.Join(err, unix.ENOENT)
	}
	err := g.agent.run(t.Context())
	if !errors.Is(err, unix.ENOENT) || !strings.HasPrefix(err.Error(), "loading the kernel module /m/a.ko: ") ||
		!strings.HasSuffix(err.Error(), "; the kernel says: a: Unknown symbol b (err -2)") {
		t.Errorf("%v", err)
	}
	if got := g.drain(nil); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	fd, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
