//go:build linuxbed

package linux

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// ofKernel is one of the kernel's own schedulers, in its build tree.
func ofKernel(name string) string { return filepath.Join(kernel, "tools", "sched_ext", name) }

// A package of Debian's, unpacked, whose modules come with what they need.
func TestX86KernelPackage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, from := range map[string]string{
		"boot/vmlinuz-7.0": kernel,
		"lib/modules/7.0/kernel/arch/x86/kvm/kvm.ko.gz": os.Getenv("KTSTR_TEST_MODULE_KVM"),
		"lib/modules/7.0/kernel/virt/lib/irqbypass.ko":  os.Getenv("KTSTR_TEST_MODULE_IRQBYPASS"),
	} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".gz") {
			var packed bytes.Buffer
			z := gzip.NewWriter(&packed)
			if _, err := z.Write(content); err != nil || z.Close() != nil {
				t.Fatal(err)
			}
			content = packed.Bytes()
		}
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	e := vmmRun(t, "--kernel", dir, "--module", "kvm", "--", "busybox", "cut", "-d", " ", "-f", "1,4", "/proc/modules")
	e.want(t, 0, "kvm -\nirqbypass kvm,\n")
}

// The suite's kernel is a folder, and so are all of its tests tests of one; here it is looked at what was booted.
func TestSchedExtKernelFolder(t *testing.T) {
	t.Parallel()
	release, err := os.ReadFile(filepath.Join(kernel, "include", "config", "kernel.release"))
	if err != nil {
		t.Fatal(err)
	}
	e, r := reported(t, "--", "busybox", "uname", "-r")
	e.want(t, 0, string(release))
	if strings.Contains(r.ConsoleTail, "ACPI Error") || strings.Contains(r.ConsoleTail, "System Description Tables") {
		t.Errorf("its console says:\n%s", r.ConsoleTail)
	}
}

// Modules are loaded with their parameters before the command starts; what is built in needs no loading.
func TestSchedExtModules(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--module", "ipip", "--module", "dummy numdummies=3", "--module", "ip-tunnel", "--", "busybox", "sh",
		"-c", "busybox ls -d /sys/class/net/dummy* /sys/class/net/tunl0; busybox cut -d ' ' -f 1,4 /proc/modules")
	const net = "/sys/class/net/"
	e.want(t, 0, net+"dummy0\n"+net+"dummy1\n"+net+"dummy2\n"+net+"tunl0\n"+"dummy -\nipip -\n")
}

// A module that can't be loaded ends the run, with the kernel's words.
func TestSchedExtModuleFails(t *testing.T) {
	t.Parallel()
	e, r := reported(t, "--module", "dummy numdummies=many", "--", "busybox", "true")
	if e.code != 122 || r.Crash == nil {
		t.Fatalf("exit code %d, %s\n%+v", e.code, e.stderr, r)
	}
	want := regexp.MustCompile("loading the kernel module /ktstr/modules/dummy.ko: invalid argument; " +
		"the kernel says: dummy: `many' invalid for parameter `numdummies'")
	if !want.MatchString(r.Crash.Message) {
		t.Errorf("%q", r.Crash.Message)
	}
}

// The FIFO schedules both workloads on one processor and on four, and says at its end what it did.
func TestSchedExtFIFO(t *testing.T) {
	t.Parallel()
	for _, cpus := range []int{1, 4} {
		for _, work := range []string{"cpu", "pingpong"} {
			t.Run(fmt.Sprint(cpus, " ", work), func(t *testing.T) {
				t.Parallel()
				e, r := scheduled(t, "--cpus", fmt.Sprint(cpus), "--scheduler", fifo, "--", workload, work,
					"-time", "500ms")
				if e.code != 0 || r.Outcome != "exited" || !strings.HasPrefix(string(e.stdout), work+": ") {
					t.Errorf("exit code %d, stdout %q, %s\n%+v", e.code, e.stdout, e.stderr, r)
				}
			})
		}
	}
}

// The kernel's own schedulers run unchanged, and scx_stats makes messages of what they print.
func TestSchedExtOfKernel(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"scx_simple", "scx_qmap"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			program := ofKernel(name)
			e, r := scheduled(t, "--cpus", "2", "--include", program, "--include", workload,
				"--scheduler", scxStats+" "+program, "--", "busybox", "sh", "-c",
				"busybox cat /sys/kernel/sched_ext/root/ops; exec "+workload+" pingpong -time 2s")
			ops := strings.TrimPrefix(name, "scx_") + "\n"
			if e.code != 0 || r.Outcome != "exited" || !strings.HasPrefix(string(e.stdout), ops+"pingpong: ") ||
				r.Ring.ByType["PMET"] == 0 {
				t.Errorf("exit code %d, stdout %q, %s\n%+v", e.code, e.stdout, e.stderr, r)
			}
		})
	}
}
