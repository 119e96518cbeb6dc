package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var spin = x86.Code{0xeb, 0xfe} // jmp .

// start builds and starts a machine, to be closed with the test.
func start(t *testing.T, b vm.Backend, kernel x86.Code) (*vm.Machine, error) {
	t.Helper()
	m, err := vm.New(vm.Config{Kernel: kernel, Backend: b, Memory: 64 << 20})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, m.Start()
}

// ends is why a machine can't be built, or ends.
func ends(t *testing.T, b vm.Backend, kernel x86.Code) error {
	t.Helper()
	m, err := start(t, b, kernel)
	if err != nil {
		return err
	}
	return vmtest.End(t, m)
}

// running starts a guest that spins, waits until it runs, and returns its emulator's process.
func running(t *testing.T) (*vm.Machine, int) {
	t.Helper()
	m, err := start(t, testenv.Emulator(t), spin)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(vmtest.HangLimit); m.FirstExit().IsZero(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the guest does not run")
		}
	}
	pids := vmtest.Children(t, os.Getpid())
	if len(pids) != 1 {
		t.Fatalf("children %v", pids)
	}
	return m, pids[0]
}

// A child that somebody else ends is an error that names it, not an end of the guest's.
func TestChildEndedFromOutside(t *testing.T) {
	m, pid := running(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := vmtest.End(t, m)
	if !errors.Is(err, vm.ErrRun) || !strings.Contains(err.Error(), fmt.Sprintf("qemu-system-x86_64, process %d", pid)) {
		t.Error(err)
	}
	if pids := vmtest.Children(t, os.Getpid()); len(pids) > 0 {
		t.Errorf("children %v are left", pids)
	}
}

// What asks a whole job to end does not reach the child: these signals stay pending.
func TestChildIsDeaf(t *testing.T) {
	_, pid := running(t)
	want := uint64(0)
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
		want |= 1 << (s - 1)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	pending := uint64(0)
	_, rest, _ := strings.Cut(string(text), "ShdPnd:")
	if _, err := fmt.Sscanf(rest, "%x", &pending); err != nil || pending != want {
		t.Errorf("pending are 0x%x (%v), want 0x%x", pending, err, want)
	}
}

// A guest has all of its RAM, the firmware's sign of life too. What it does to it changes neither when it was first
// heard of nor why it ended.
func TestGuestClearsTheSignOfLife(t *testing.T) {
	// [0x5f00] = 0; reset
	clear := x86.Code{0x31, 0xc0, 0x89, 0x04, 0x25, 0x00, 0x5f, 0x00, 0x00, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}
	for range 10 {
		m, err := start(t, testenv.Emulator(t), clear)
		if err != nil {
			t.Fatal(err)
		}
		if err := vmtest.End(t, m); !errors.Is(err, vm.ErrReset) || m.FirstExit().IsZero() {
			t.Fatalf("ended by %v, first heard of at %v", err, m.FirstExit())
		}
	}
}

// QEMU ends at whatever a guest writes to the sleep control register. What powers off on KVM is a power-off; what does
// nothing there can't do that here, and is named.
func TestSleepControl(t *testing.T) {
	for v, want := range map[byte]error{
		0x34: vm.ErrPowerOff, 0xb4: vm.ErrPowerOff, 0xf7: vm.ErrPowerOff,
		0: vm.ErrRun, 1: vm.ErrRun, 0x14: vm.ErrRun, 0x30: vm.ErrRun, 0x7f: vm.ErrRun, 0x80: vm.ErrRun, 0xff: vm.ErrRun,
	} {
		sleep := x86.Code{0x66, 0xba, 0x00, 0x06, 0xb0, v, 0xee, 0xeb, 0xfe} // out 0x600, v; jmp .
		err := ends(t, testenv.Emulator(t), sleep)
		named := want == vm.ErrPowerOff ||
			strings.Contains(fmt.Sprint(err), fmt.Sprintf("wrote 0x%x, which is no power-off", v&0x7f))
		if !errors.Is(err, want) || !named {
			t.Errorf("0x%x: %v", v, err)
		}
	}
}

// script makes a program that stands for a QEMU.
func script(t *testing.T, text string) qemu.Backend {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return qemu.Backend{Program: path}
}

// A QEMU that can't do it says so in one line, with what to do.
func TestUnusableQEMU(t *testing.T) {
	version := func(v string) string {
		return `[ "$1" = --version ] && { echo "QEMU emulator version ` + v + `"; exit; }` + "\n"
	}
	for name, tc := range map[string]struct {
		backend qemu.Backend
		want    error
		says    []string
	}{
		"not there": {qemu.Backend{Program: "/nonexistent"}, qemu.ErrNotInstalled,
			[]string{"/nonexistent", "qemu-system-x86"}},
		"old": {script(t, version("6.2.0 (Debian 1:6.2)")+"echo no such property >&2; exit 1"), qemu.ErrTooOld,
			[]string{"6.2.0", "7.2", "qemu-system-x86"}},
		"refuses": {script(t, version("9.1")+"echo 'no -sandbox'  >&2; echo here >&2; exit 1"), vm.ErrRun,
			[]string{"exit status 1", "no -sandbox here"}},
		"says nothing": {script(t, version("9.1")+"exit 3"), vm.ErrRun, []string{"exit status 3"}},
		"ends at once": {script(t, version("9.1")+"exit 0"), vm.ErrRun, []string{"refused to start"}},
		"says too much": {script(t, version("9.1")+"head -c 10000000 /dev/zero | tr '\\0' x >&2; exit 1"),
			vm.ErrRun, []string{"xxxx"}},
	} {
		err := ends(t, tc.backend, spin)
		if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 8<<10 {
			t.Errorf("%s: %.300v", name, err)
			continue
		}
		for _, text := range tc.says {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: no %q in %v", name, text, err)
			}
		}
	}
}

// One that never gets to its firmware is stopped like any other.
func TestHangingQEMU(t *testing.T) {
	m, err := start(t, script(t, "exec sleep 1000"), spin)
	if err != nil {
		t.Fatal(err)
	}
	reason := errors.New("enough")
	m.Stop(reason)
	if err := vmtest.End(t, m); err != reason {
		t.Error(err)
	}
	if pids := vmtest.Children(t, os.Getpid()); len(pids) > 0 {
		t.Errorf("children %v are left", pids)
	}
}

func TestCheck(t *testing.T) {
	path, version, err := testenv.Emulator(t).Check(x86.Board{})
	if err != nil || !filepath.IsAbs(path) || version == "" {
		t.Errorf("%q, %q, %v", path, version, err)
	}
	if _, version, err := script(t, "echo QEMU emulator version 7.1.50").Check(x86.Board{}); !errors.Is(err,
		qemu.ErrTooOld) || version != "7.1.50" {
		t.Errorf("%q, %v", version, err)
	}
	if _, _, err := script(t, "echo something else").Check(x86.Board{}); !errors.Is(err, vm.ErrUnavailable) ||
		!strings.Contains(err.Error(), "something else") {
		t.Error(err)
	}
}

// A QEMU that does not answer is asked for registers once, and waited for as long as the caller likes.
func TestRegistersOfAHangingQEMU(t *testing.T) {
	m, err := start(t, script(t, "exec sleep 1000"), spin)
	if err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"QEMU did not answer", "has yet to answer who asked before"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := m.Registers(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want one that says %q", err, says)
		}
	}
	asked := make(chan error)
	go func() {
		_, err := m.Registers(context.Background())
		asked <- err
	}()
	reason := errors.New("enough")
	m.Stop(reason)
	if err := vmtest.End(t, m); err != reason {
		t.Error(err)
	}
	if err := <-asked; !errors.Is(err, vm.ErrNotRunning) {
		t.Error(err)
	}
}
