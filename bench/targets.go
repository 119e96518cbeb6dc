package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
	"github.com/ktstr/ktstr-vmm/test/bed"
)

// newQEMU is the version from which on the emulator's floods have goals.
const newQEMU = 10

// target is a back end that is measured.
type target struct {
	name    string
	backend vm.Backend
	mode    accel.Mode // what makes the program take it
	qemu    string     // path of the emulator; "" for KVM
	version int        // the emulator's major one
}

// env is the environment in which the program finds the target's emulator.
func (t target) env() []string {
	if t.qemu == "" {
		return nil // ours
	}
	return append(os.Environ(), "PATH="+filepath.Dir(t.qemu)+":"+os.Getenv("PATH"))
}

func (t target) isKVM() bool { return t.qemu == "" }

func (t target) figure(name, value string) { figure(t.row(name), value) }

func (t target) goal(name, value, want string, reached bool) { goal(t.row(name), value, want, reached) }

func (t target) row(name string) string { return fmt.Sprintf("%-12s %s", t.name, name) }

type targetList []target

// each does one thing to each.
func (l targetList) each(do func(target) error) func() error {
	return func() error {
		var failed []error
		for _, t := range l {
			if err := do(t); err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", t.name, err))
			}
		}
		return errors.Join(failed...)
	}
}

// targets finds what there is on this host and says so, and what there is not.
func targets() (all targetList, cleanUp func(), err error) {
	if err := (kvm.Backend{}).Check(x86.Board{}); err != nil {
		left("KVM", err)
	} else {
		all = append(all, target{name: "KVM", backend: kvm.Backend{}, mode: accel.KVM})
		found("KVM", kvm.DefaultDevice)
	}
	emulators, cleanUp, err := emulators(x86.Board{})
	return append(all, emulators...), cleanUp, err
}

// emulators are the installed QEMU for a board's guests and, where that is older, the fetched one.
func emulators(b vm.Board) (all targetList, cleanUp func(), err error) {
	cleanUp = func() {}
	installed, err := emulator(b, "")
	if err != nil {
		left("QEMU", err)
	} else {
		all = append(all, installed)
		found(installed.name, installed.qemu)
		if installed.version >= newQEMU {
			return all, cleanUp, nil
		}
	}
	name := fmt.Sprintf("QEMU %d", newQEMU)
	program, cleanUp, err := fetchedEmulator(b)
	if errors.Is(err, bed.ErrMissing) {
		left(name, err)
		return all, cleanUp, nil
	}
	if err != nil {
		return nil, nil, err
	}
	fetched, err := emulator(b, program)
	if err != nil {
		left(name, err)
		return all, cleanUp, nil
	}
	found(fetched.name, program)
	return append(all, fetched), cleanUp, nil
}

// x86Emulator and arm64Emulator are the programs as the back end looks for them.
const (
	x86Emulator   = "qemu-system-x86_64"
	arm64Emulator = "qemu-system-aarch64"
)

// emulator is a target; "" is the one on PATH.
func emulator(board vm.Board, program string) (target, error) {
	b := qemu.Backend{Program: program}
	path, version, err := b.Check(board)
	if err != nil {
		return target{}, err
	}
	t := target{name: "QEMU " + version, backend: b, mode: accel.Emulator, qemu: path}
	_, err = fmt.Sscanf(version, "%d", &t.version)
	return t, err
}

// fetchedEmulator is the path of the one that fetch-linux unpacked.
func fetchedEmulator(b vm.Board) (path string, cleanUp func(), err error) {
	if b == (arm64.Board{}) {
		dir, err := bed.Find("qemu-system-arm")
		return filepath.Join(dir, "usr", "bin", arm64Emulator), func() {}, err
	}
	command, err := bed.QEMU()
	if err != nil {
		return "", func() {}, err
	}
	return wrapper(command)
}

// wrapper makes a folder in which a QEMU with arguments of its own looks like an installed one.
func wrapper(command []string) (path string, cleanUp func(), err error) {
	dir, err := os.MkdirTemp("", "bench-qemu-*")
	if err != nil {
		return "", func() {}, err
	}
	cleanUp = func() { _ = os.RemoveAll(dir) }
	text := "#!/bin/sh\nexec"
	for _, word := range command {
		text += " '" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	path = filepath.Join(dir, x86Emulator)
	return path, cleanUp, os.WriteFile(path, []byte(text+" \"$@\"\n"), 0o755)
}

func found(name, where string) { fmt.Printf("%-12s %s\n", name, where) }

func left(name string, why error) { fmt.Printf("%-12s not measured: %v\n", name, why) }
