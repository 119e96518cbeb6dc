//go:build linuxbed

package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/linux"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// Messages of random sizes, the same in testdata/ringwriter.c: runs of a pattern, whose begins and lengths come from a
// xorshift generator.
const (
	patternSize    = 4096
	longestMessage = 300
)

func ringPattern() []byte {
	b := make([]byte, patternSize)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

type xorshift uint64

func (x *xorshift) next() uint64 {
	*x ^= *x << 13
	*x ^= *x >> 7
	*x ^= *x << 17
	return uint64(*x)
}

// message is the next one's payload.
func (x *xorshift) message(pattern []byte) []byte {
	r := x.next()
	at := (r >> 32) % (patternSize - longestMessage)
	return pattern[at:][:r%(longestMessage+1)]
}

// mapRing maps the ring as PID 1, which has mounted nothing yet.
func mapRing() (*guestmem.Window, []byte, error) {
	for dir, kind := range map[string]string{"/proc": "proc", "/dev": "devtmpfs"} {
		_ = os.Mkdir(dir, 0o755)
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return nil, nil, err
		}
	}
	return shm.MapRing("/proc/cmdline", "/dev/mem")
}

// writeRing is what ringwriter.c does, by shm.Writer.
func writeRing(count string) error {
	region, _, err := mapRing()
	if err != nil {
		return err
	}
	w, err := shm.NewWriter(region)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	pattern, ctx := ringPattern(), context.Background()
	for x := xorshift(1); n > 0; n-- {
		if err := w.WriteWait(ctx, shm.RawOutput, x.message(pattern)); err != nil {
			return err
		}
	}
	code := shm.EncodeCode(0)
	if err := w.WriteWait(ctx, shm.Exit, code[:]); err != nil {
		return err
	}
	select {} // the host ends the machine
}

// copyToRing is what writers did before they minded Device memory.
func copyToRing() error {
	_, mem, err := mapRing()
	if err != nil {
		return err
	}
	copy(mem[len(mem)/2+1:], ringPattern()[:100])
	return errors.New("nothing happened")
}

// asInit runs a program of a guest's architecture as PID 1 of one with two processors, which QEMU 10 emulates on
// threads of their own: QEMU takes notice of unaligned accesses to Device memory then alone.
func asInit(t *testing.T, handle func(shm.Message), program string, args ...string) *run.Result {
	t.Helper()
	cfg, files, err := linux.Guest{
		Kernel: kernel, Sysroot: sysroot, Command: []string{"busybox", "true"},
		Include: []string{program + ":/probe"},
		Append:  "rdinit=/probe -- " + strings.Join(args, " "),
	}.Config()
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	cfg.Topology, cfg.Reserved = topology.OfCores(2), 1<<20
	cfg.Backend, _ = accel.Choose(accel.Mode(mode), accel.Guest{Board: cfg.Kernel.Board(), Linux: true})
	return run.Run(t.Context(), run.Config{
		VM: cfg, Timeout: 20 * time.Minute,
		Handlers: func(mux *monitor.Mux) {
			mux.HandleFunc(shm.RawOutput, func(m shm.Message) monitor.Verdict { handle(m); return monitor.Continue })
		},
	})
}

// ringMessages is how many messages each writer sends; the environment can ask for the ten million that a person has
// time for.
func ringMessages(t *testing.T) int {
	t.Helper()
	n := 1_000_000
	if text := os.Getenv("KTSTR_TEST_MESSAGES"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// Guests' processes have the ring as Device memory on arm64. Writers in Go and in C, on one processor, and the host's
// reader, on another, agree about every message, of whatever size and wherever it lies.
func TestArm64RingIsDeviceMemory(t *testing.T) {
	t.Parallel()
	for name, writer := range map[string]func(*testing.T, string) (string, []string){
		"Go": func(_ *testing.T, count string) (string, []string) {
			return program, []string{"-helper=write-ring", "-messages=" + count}
		},
		"C": func(t *testing.T, count string) (string, []string) { return cWriter(t), []string{count} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			count := ringMessages(t)
			path, args := writer(t, fmt.Sprint(count))
			pattern, x, read, wrong := ringPattern(), xorshift(1), 0, 0
			start := time.Now()
			r := asInit(t, func(m shm.Message) {
				read++
				if !bytes.Equal(m.Payload, x.message(pattern)) {
					wrong++
				}
			}, path, args...)
			t.Logf("%d messages in %v", read, time.Since(start))
			if r.ExitCode != 0 || read != count || wrong != 0 || r.Ring.CRCErrors != 0 || r.Ring.Drops != 0 ||
				r.Ring.FaultCount() != 0 {
				t.Errorf("%v, exit code %d, %d of %d messages, %d wrong, %+v, console %s", r.Outcome, r.ExitCode, read, count,
					wrong, r.Ring, r.Console)
			}
		})
	}
}

// cWriter builds ringwriter.c with the embedded guest's writer.
func cWriter(t *testing.T) string {
	t.Helper()
	gcc, err := exec.LookPath("aarch64-linux-gnu-gcc")
	if err != nil {
		t.Skipf("this test needs a C compiler for arm64: %v", err)
	}
	path, src := filepath.Join(t.TempDir(), "ringwriter"), filepath.Join("..", "..", "guest", "src")
	build := exec.Command(gcc, "-O2", "-static", "-march=armv8-a+crc", "-I", src, "-o", path,
		filepath.Join("testdata", "ringwriter.c"), filepath.Join(src, "ring.c"), filepath.Join(src, "crc32.c"),
		filepath.Join(src, "crc32_arm64.c"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	return path
}

// Go's copy in the writers' place is the guest's end: QEMU does fault here, so that the test before shows something.
func TestArm64CopyFaultsOnDeviceMemory(t *testing.T) {
	t.Parallel()
	r := asInit(t, func(shm.Message) {}, program, "-helper=copy-to-ring")
	if r.Outcome != run.Crashed || !bytes.Contains(r.Console, []byte("SIGBUS")) {
		t.Errorf("%v, console %s", r.Outcome, r.Console)
	}
}

// The format's golden vectors are on arm64 what they are here.
func TestArm64Vectors(t *testing.T) {
	t.Parallel()
	e := vmmRunIn(t, filepath.Join("..", "..", "pkg", "shm"), "--", os.Getenv("KTSTR_TEST_SHM"), "-test.v",
		"-test.run=Vectors")
	if e.code != 0 || !bytes.Contains(e.stdout, []byte("--- PASS: TestVectorsLive")) {
		t.Errorf("exit code %d, %s%s", e.code, e.stdout, e.stderr)
	}
}

// inspectAll has a program inspect each image, and shows the exit codes.
const inspectAll = `for image in shm/testdata/vectors/*.bin fdt/testdata/*.dtb; do
	"$0" inspect --json "$image" 2>&1
	echo "$image: $?"
done`

// On arm64, inspect says of rings and device trees what it says on this host.
func TestArm64Inspect(t *testing.T) {
	t.Parallel()
	pkg := filepath.Join("..", "..", "pkg")
	here := exec.Command("sh", "-c", inspectAll, vmm)
	here.Dir = pkg
	want, err := here.Output()
	if err != nil || !bytes.Contains(want, []byte("\nfdt/testdata/qemu.dtb: 0\n")) {
		t.Fatalf("%v, %s", err, want)
	}
	vmmRunIn(t, pkg, "--include", "shm/testdata/vectors", "--include", "fdt/testdata", "--include", guestVMM, "--",
		"busybox", "sh", "-c", inspectAll, guestVMM).want(t, 0, string(want))
}

// The device tree that a guest's kernel shows is one that inspect reads here.
func TestArm64InspectTree(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--", "busybox", "cat", "/sys/firmware/fdt")
	if e.code != 0 {
		t.Fatalf("exit code %d, %s", e.code, e.stderr)
	}
	tree := filepath.Join(t.TempDir(), "tree.dtb")
	if err := os.WriteFile(tree, e.stdout, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command(vmm, "inspect", tree).CombinedOutput()
	want := "RAM        0x20000000 bytes at 0x40000000\n" + // the ring, and the call area behind it
		"reserved   0x1010000 bytes at 0x5eff0000, shm@5eff0000, no-map\n"
	if err != nil || string(got) != want {
		t.Errorf("%v, %s; want %s", err, got, want)
	}
}

// A ring that is reserved as a part of the kernel's memory can't be mapped on a kernel with STRICT_DEVMEM, which these
// are: the agent says so.
func TestArm64CacheableReservation(t *testing.T) {
	t.Parallel()
	e, r := reported(t, "--shm-reserve", "cacheable", "--", "busybox", "true")
	says := "ktstr-vmm agent: mapping KTSTR_SHM_BASE="
	if e.code != 120 || r.Outcome != "no_verdict" || strings.Count(r.ConsoleTail, says) != 1 ||
		!strings.Contains(string(e.stderr), says) {
		t.Errorf("exit code %d, %s\n%+v", e.code, e.stderr, r)
	}
}
