//go:build linuxbed

package linux

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/internal/smaps"
	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
)

func TestMemoryAboveFourGiB(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--memory", "5G", "--", "busybox", "grep", "MemTotal", "/proc/meminfo")
	var kib int
	if _, err := fmt.Sscanf(string(e.stdout), "MemTotal: %d kB", &kib); err != nil || e.code != 0 || kib < 4800<<10 {
		t.Errorf("exit code %d, %q, %s", e.code, e.stdout, e.stderr)
	}
}

// Linux brings up all processors, as cores of one package.
func TestProcessors(t *testing.T) {
	t.Parallel()
	vmmRun(t, "--cpus", "2", "--", "busybox", "sh", "-c", `
		busybox nproc
		cd /sys/devices/system/cpu
		busybox cat online cpu0/topology/core_id cpu1/topology/core_id cpu0/topology/package_cpus_list
		busybox taskset 2 busybox echo on the second`).want(t, 0, "2\n0-1\n0\n1\n0-1\non the second\n")
}

// The kernel boots in its other form, too: for x86_64 the ELF file that a bzImage unpacks, for arm64 a packed Image.
func TestOtherFormOfTheKernel(t *testing.T) {
	t.Parallel()
	vmmRun(t, "--kernel", os.Getenv("KTSTR_TEST_OTHER_KERNEL"), "--", "busybox", "uname", "-s").want(t, 0, "Linux\n")
}

func TestRefusedKernels(t *testing.T) {
	good, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	arm := make([]byte, 4096)
	copy(arm[0x38:], "ARMd")
	for name, tc := range map[string]struct {
		content []byte
		says    string
	}{
		"script": {[]byte("#!/bin/sh\n"), "neither a bzImage nor an ELF file"},
		"cut":    {good[:len(good)/2], "cut short"},
		"header": {good[:0x210], "cut short"},
		// An Image of nothing but a header; on x86_64 what else it is is seen first.
		"arm64": {arm, map[string]string{"x86_64": "the guest is arm64", "arm64": "its header says"}[arch]},
	} {
		path := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(path, tc.content, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(vmm, runArgs("--kernel", path, "--", "busybox", "true")...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 125 || !strings.Contains(string(out), tc.says) ||
			strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v, %s", name, err, out)
		}
	}
	for flag, tc := range map[string]struct{ value, says string }{
		"--memory": {"24M", "try more --memory"},
		"--append": {strings.Repeat("x", 2048), "kernel takes at most 2047"},
	} {
		out, err := exec.Command(vmm, runArgs(flag, tc.value, "--", "busybox", "true")...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 125 || !strings.Contains(string(out), tc.says) {
			t.Errorf("%s: %v, %s", flag, err, out)
		}
	}
}

// emulatorsClock is what the emulator's x86_64 guests are told of their clock, at the beginning of the command line.
var emulatorsClock = regexp.MustCompile(`^tsc_early_khz=[1-9]\d* tsc=reliable `)

func TestCommandLine(t *testing.T) {
	t.Parallel()
	only := strings.Fields(linux.Cmdline(arch))[0] + " quiet rdinit=/init reboot=k panic=-1 pci=off iomem=relaxed all=mine"
	for flag, tc := range map[string]struct{ value, want string }{
		"--append":       {"more=yes", linux.Cmdline(arch) + " more=yes\n"},
		"--cmdline-only": {only, only + "\n"},
	} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			e := vmmRun(t, flag, tc.value, "--", "busybox", "cat", "/proc/cmdline")
			got := string(e.stdout)
			if mode == "emulator" && arch == "x86_64" {
				if !emulatorsClock.MatchString(got) {
					t.Errorf("nothing of the clock: %s", got)
				}
				got = emulatorsClock.ReplaceAllString(got, "")
			}
			ring, rest, _ := strings.Cut(got, " console=")
			if e.code != 0 || "console="+rest != tc.want || !strings.HasPrefix(ring, "KTSTR_SHM_BASE=0x") ||
				!strings.Contains(ring, " KTSTR_SHM_SIZE=0x") {
				t.Errorf("exit code %d, %s%s", e.code, e.stdout, e.stderr)
			}
		})
	}
}

// A base initramfs lies below the one that is made.
func TestBaseInitrd(t *testing.T) {
	t.Parallel()
	base := initramfs.New()
	base.AddText("/base/file", "from the base\n", 0o600)
	base.AddText("/init", "not this one", 0o755)
	path := filepath.Join(t.TempDir(), "base.cpio")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := base.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	vmmRun(t, "--initrd", path, "--", "busybox", "cat", "/base/file").want(t, 0, "from the base\n")
}

// What the base has as links stays that, and a file with two names is not written into where one is replaced.
func TestMergedBase(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	for _, dir := range []string{"usr/bin", "usr/lib64"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shared := filepath.Join(tree, "usr/bin/one")
	if err := errors.Join(
		os.Symlink("usr/bin", filepath.Join(tree, "bin")), os.Symlink("usr/lib64", filepath.Join(tree, "lib64")),
		os.WriteFile(shared, []byte("the base's\n"), 0o644), os.Link(shared, filepath.Join(tree, "usr/bin/two")),
	); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(t.TempDir(), "mine")
	if err := os.WriteFile(mine, []byte("of the archive\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	base := initramfs.New()
	if err := base.AddTree(tree, "/"); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := base.WriteTo(z); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "base.cpio.gz")
	if err := os.WriteFile(path, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	vmmRun(t, "--initrd", path, "--include", mine+":/bin/two", "--", "busybox", "sh", "-c",
		"busybox readlink /bin; busybox readlink /lib64; busybox cat /bin/one /usr/bin/two").
		want(t, 0, "usr/bin\nusr/lib64\nthe base's\nof the archive\n")
}

// The console goes to a file and to stderr, and the kernel says more; the output is what it was.
func TestConsole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console")
	e := vmmRun(t, "--verbose", "--console", path, "--", "busybox", "echo", "output")
	e.want(t, 0, "output\n")
	text, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(text, []byte("Linux version")) || !bytes.Contains(e.stderr, []byte("Linux version")) {
		t.Errorf("%v, console %s, stderr %s", err, text, e.stderr)
	}
}

// Many at once, each with its own ring and output: on KVM twenty, with little memory beside the
// guest's; emulated ones keep a processor each busy, so that eight are as good as twenty.
func TestManyAtOnce(t *testing.T) {
	const (
		memory = 160 << 20
		ring   = 64 << 10
	)
	runs, lines, most := 20, 2000, 24<<10 // KiB
	switch {
	case mode == "emulator":
		runs, most = 8, 0 // its processes are not ours alone to measure
	case testing.Short():
		runs, lines, most = 3, 300, 40<<10 // one emulated processor for all of them, whose host has pages of its own mind
	}
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() {
			var stdout, stderr bytes.Buffer
			cmd := exec.Command(vmm, runArgs("--timeout", "8m", "--memory", fmt.Sprint(memory),
				"--shm-size", fmt.Sprint(ring), "--",
				"busybox", "sh", "-c", fmt.Sprintf("i=0; while test $i -lt %d; do echo guest %d line $i; i=$((i+1)); done; "+
					"exit %d", lines, i, i))...)
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			largest := make(chan beside)
			stop := make(chan struct{})
			go func() {
				var most beside
				for {
					if now := besideGuest(cmd.Process.Pid); now.kib > most.kib {
						most = now
					}
					select {
					case <-stop:
						largest <- most
						return
					case <-time.After(time.Second):
					}
				}
			}()
			_ = cmd.Wait()
			close(stop)
			got := <-largest
			t.Logf("run %d: %d KiB beside the guest's memory, %d of them in huge pages", i, got.kib, got.huge)
			if most > 0 && (got.kib == 0 || got.kib > most) {
				t.Errorf("run %d: %d KiB beside the guest's memory, at most %d: %+v", i, got.kib, most, got.largest)
			}
			var want bytes.Buffer
			for n := range lines {
				fmt.Fprintf(&want, "guest %d line %d\n", i, n)
			}
			if code := cmd.ProcessState.ExitCode(); code != i || !bytes.Equal(stdout.Bytes(), want.Bytes()) {
				t.Errorf("run %d: exit code %d, %d bytes of stdout, want %d: %.1000s", i, code, stdout.Len(),
					want.Len(), stderr.Bytes())
			}
		})
	}
	wg.Wait()
}

// beside is a process's resident memory without its guest's, and how much of it is in huge pages.
type beside struct {
	kib, huge int
	largest   []smaps.Mapping // those of a MiB or more
}

// besideGuest tells a guest's memory by what is left out of core dumps. It is nothing where the process is gone, or has
// yet to become the program: until then it has the memory of who started it.
func besideGuest(pid int) (sum beside) {
	all, err := smaps.Read(pid)
	if err != nil {
		return beside{}
	}
	started := false
	for _, m := range all {
		started = started || filepath.Base(m.Name) == filepath.Base(vmm)
		if !m.NoDump && !m.Memfd {
			sum.kib += m.RSS
			sum.huge += m.Huge
			if m.RSS >= 1<<10 {
				sum.largest = append(sum.largest, m)
			}
		}
	}
	if !started {
		return beside{}
	}
	return sum
}
