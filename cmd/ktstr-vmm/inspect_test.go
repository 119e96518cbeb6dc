package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// vector is a golden image of a ring.
func vector(t *testing.T, name string) []byte {
	t.Helper()
	image, err := os.ReadFile(filepath.Join("..", "..", "pkg", "shm", "testdata", "vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// arm64RAM is the RAM of an arm64 guest that lies where no machine of ours does, and its device tree, which is in it
// too. The ring is the golden one with a message of each type. RAM starts with another tree, as on QEMU.
func arm64RAM(t *testing.T) (tree, ram []byte) {
	t.Helper()
	const start, size, ringSize = 0x80000000, 4 << 20, 8 << 10
	m := fdt.Machine{
		RAM:      []fdt.Range{{Start: start, Size: size - ringSize}},
		Ring:     fdt.Range{Start: start + size - ringSize, Size: ringSize},
		Topology: topology.OfCores(1),
		Devices: fdt.Devices{
			Distributor:    fdt.Range{Start: 0x1000000, Size: 0x10000},
			Redistributors: fdt.Range{Start: 0x2000000, Size: fdt.RedistributorSize},
			UART:           fdt.Range{Start: 0x3000000, Size: 0x1000},
			UARTClock:      1,
		},
	}
	tree, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	ram = make([]byte, size)
	copy(ram, bytes.ReplaceAll(tree, []byte("shm@"), []byte("not@")))
	copy(ram[3<<20:], tree)
	copy(ram[size-ringSize:], vector(t, "all-types.bin"))
	return tree, ram
}

// inspectEnds reports inspect's ends with another exit code than one of these, or with more than a line on stderr.
func inspectEnds(t *testing.T, name string, content []byte, codes ...int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--json", path}, {path}} {
		var out, errOut limited
		// Without the other commands: to make them takes longer than to inspect.
		if code := executeCommand(inspectCommand(), args, &out, &errOut); !slices.Contains(codes, code) {
			t.Errorf("%s: %s: exit code %d, want one of %v; %s", name, args, code, codes, errOut.text)
		}
		oneLineOf(t, errOut.text)
	}
}

// A ring image cut anywhere, of zeros or of noise never panics inspect, and always ends it with a
// code that it is known for.
func TestInspectAnyImage(t *testing.T) {
	image := vector(t, "all-types.bin")
	for n := 0; n < 600; n += 7 {
		want := 1 // cut
		if n < 40 {
			want = 125 // no ring
		}
		inspectEnds(t, fmt.Sprintf("cut at %d", n), image[:n], want)
	}
	inspectEnds(t, "whole", image, 0)
	inspectEnds(t, "zeros", make([]byte, 1<<20), 125)
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	inspectEnds(t, "noise", noise, 125)
	copy(noise, image[:12]) // a ring's first fields, then noise
	inspectEnds(t, "noisy ring", noise, 0, 1)
}

// A named pipe is no image, and inspect does not wait for who opens its other end.
func TestInspectPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	code := make(chan int, 1)
	var out, errOut limited
	go func() { code <- execute([]string{"inspect", path}, &out, &errOut) }()
	select {
	case got := <-code:
		if got != 125 || !strings.Contains(string(errOut.text), "copy it to a file first") {
			t.Errorf("exit code %d: %s", got, errOut.text)
		}
	case <-time.After(hangLimit):
		t.Fatal("inspect waits for a writer")
	}
}

// The same for an arm64 guest's device tree and RAM.
func TestInspectAnyTree(t *testing.T) {
	tree, ram := arm64RAM(t)
	for n := 0; n < len(tree); n += 7 {
		inspectEnds(t, fmt.Sprintf("tree cut at %d", n), tree[:n], 125)
	}
	inspectEnds(t, "whole tree", tree, 0)
	for n := 0; n < len(tree); n += 5 {
		changed := bytes.Clone(tree)
		changed[n] ^= 0x81
		inspectEnds(t, fmt.Sprintf("tree with byte %d changed", n), changed, 0, 125)
	}
	inspectEnds(t, "whole RAM", ram, 0)
	inspectEnds(t, "RAM that ends in the ring", ram[:len(ram)-6<<10], 1)
	inspectEnds(t, "RAM that ends before it", ram[:len(ram)-8<<10], 125)
	inspectEnds(t, "RAM that ends before the tree", ram[:3<<20], 125)
}

// While a guest runs, inspect reads the ring in the file that is the guest's RAM.
func TestInspectRunningGuest(t *testing.T) {
	t.Parallel()
	path := program(t)
	for _, arch := range guest.Architectures {
		t.Run(arch, func(t *testing.T) {
			testenv.EmulatorOf(t, arch)
			demo := exec.Command(path, "demo", "--accel", "emulator", "--arch", arch, "--scenario", "ok,step_ms=600000")
			if err := demo.Start(); err != nil {
				t.Fatal(err)
			}
			defer ends(t, demo)
			defer demo.Process.Kill()
			inspect := []string{"inspect"}
			says := []string{"RAM        0x20000000 bytes at 0x40000000\nreserved   0x1000000 bytes at 0x5f000000, "}
			if arch == "x86_64" {
				inspect, says = append(inspect, "--offset", fmt.Sprint(vmtest.TraitsOf(arch).RingBase)), nil
			}
			says = append(says, "magic      0x53544d52\n", "write_ptr  0x10\n") // after SCST
			var out []byte
			for deadline := time.Now().Add(hangLimit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				ram := fileOfRAM(t, demo.Process.Pid)
				if ram == "" {
					continue
				}
				out, _ = exec.Command(path, append(inspect, ram)...).CombinedOutput() // it may have no ring yet
				if !slices.ContainsFunc(says, func(s string) bool { return !strings.Contains(string(out), s) }) {
					return
				}
			}
			t.Errorf("%s", out)
		})
	}
}

// fileOfRAM is the file that the emulator has the guest's RAM in; empty where it has none yet.
func fileOfRAM(t *testing.T, pid int) string {
	t.Helper()
	for _, child := range vmtest.Children(t, pid) {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", child))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if name, _ := os.Readlink(file); strings.Contains(name, "ktstr-ram") { // it may be closed by now
				return file
			}
		}
	}
	return ""
}
