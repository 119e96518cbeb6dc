package kvm_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var reset = x86.Code{0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe} // out 0x64, 0xfe; jmp .

// ends runs a guest and returns how often it left KVM and why it ended.
func ends(t *testing.T, kernel x86.Code) (exits map[string]uint64, reason error) {
	t.Helper()
	testenv.KVM(t)
	m, err := vm.New(vm.Config{Kernel: kernel, Backend: kvm.Backend{}, Memory: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	reason = vmtest.End(t, m)
	exits = map[string]uint64{}
	for name, n := range m.Exits() {
		exits[name] = n
	}
	return exits, reason
}

// Code that lies where there is no memory can't be run: the error carries the registers.
func TestRunErrorCarriesRegisters(t *testing.T) {
	// mov rax, 512 MiB; jmp rax: mapped, but no RAM
	_, err := ends(t, x86.Code{0x48, 0xc7, 0xc0, 0, 0, 0, 0x20, 0xff, 0xe0})
	if !errors.Is(err, vm.ErrRun) || !strings.Contains(err.Error(), "rip=0x20000000") ||
		!strings.Contains(err.Error(), "cr3=0x9000") {
		t.Errorf("ended by %v", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than a line: %v", err)
	}
}

// Exits are counted by their reason, and an access to nothing is answered: reads are all ones.
func TestExitsAreCounted(t *testing.T) {
	// mov rbx, 512 MiB; mov [rbx], rax; mov rax, [rbx]; inc rax; jnz .; reset
	guest := append(x86.Code{0x48, 0xc7, 0xc3, 0, 0, 0, 0x20, 0x48, 0x89, 0x03, 0x48, 0x8b, 0x03, 0x48, 0xff,
		0xc0, 0x75, 0xfe}, reset...)
	exits, err := ends(t, guest)
	if !errors.Is(err, vm.ErrReset) || exits["mmio"] < 2 || exits["io"] == 0 {
		t.Errorf("ended by %v, exits %v", err, exits)
	}
	exits, err = ends(t, x86.Code{0x0f, 0x0b}) // ud2, without an IDT
	if !errors.Is(err, vm.ErrTripleFault) || exits["shutdown"] == 0 {
		t.Errorf("ended by %v, exits %v", err, exits)
	}
}

// A device that is none, or is not there.
func TestNoKVM(t *testing.T) {
	for _, device := range []string{"/nonexistent/kvm", "/dev/null"} {
		b := kvm.Backend{Device: device}
		for name, err := range map[string]error{"Check": b.Check(x86.Board{}), "New": fails(t, b)} {
			if !errors.Is(err, kvm.ErrNoKVM) || !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), device) {
				t.Errorf("%s of %s: %v", name, device, err)
			}
		}
	}
}

// A device on a file system that allows none is one that even root may not open.
func TestNoPermission(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, ""); err != nil {
		testenv.Missing(t, "the right to mount a tmpfs", err)
	}
	defer unix.Unmount(dir, 0)
	path := filepath.Join(dir, "kvm")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 232))); err != nil {
		t.Fatal(err)
	}
	if err := fails(t, kvm.Backend{Device: path}); !errors.Is(err, kvm.ErrPermission) {
		t.Error(err)
	}
}

// fails is why a machine can't be built.
func fails(t *testing.T, b kvm.Backend) error {
	t.Helper()
	m, err := vm.New(vm.Config{Kernel: reset, Backend: b})
	if err == nil {
		_ = m.Close()
	}
	return err
}

func TestKernelSpeed(t *testing.T) {
	testenv.KVM(t)
	if err := (kvm.Backend{}).Check(x86.Board{}); err != nil {
		t.Error(err)
	}
	speed, err := kvm.Backend{}.KernelSpeed(10 * time.Second)
	if err != nil || speed < 1000 {
		t.Errorf("%v instructions a second, %v", speed, err)
	}
}
