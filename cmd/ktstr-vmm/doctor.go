package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

const (
	speedLimit   = 3 * time.Second
	usefulMemory = 1 << 30 // bytes

	// udevRule lets everybody use KVM, which hosted runners have and keep to a group.
	udevRule = `echo 'KERNEL=="kvm", MODE="0666", OPTIONS+="static_node=kvm"' | ` +
		`sudo tee /etc/udev/rules.d/99-kvm.rules && ` +
		`sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm`
)

// finding is what doctor says of one thing.
type finding struct {
	ID     string   `json:"id"`
	What   string   `json:"what"`
	State  string   `json:"state"` // ok, warn or fail
	Detail string   `json:"detail"`
	Fix    []string `json:"fix,omitempty"` // commands that root's shell may mend it with
}

// found returns a finding that no command mends.
func found(id, what, state, detail string) finding {
	return finding{ID: id, What: what, State: state, Detail: detail}
}

// diagnosis is what doctor --json prints.
type diagnosis struct {
	Schema   int       `json:"schema"` // fields are added to it, none is renamed
	Version  string    `json:"version"`
	Linux    bool      `json:"runs_linux"` // some back end is right for Linux guests
	Findings []finding `json:"findings"`
}

func doctorCommand() *cobra.Command {
	var asJSON bool
	var f fixer
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, what is missing, and what to do about it",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case f.wanted && asJSON:
				return errors.New("--fix and --json exclude each other: with --json, fix says what --fix would run")
			case f.yes && !f.wanted:
				return errors.New("--yes is for --fix")
			}
			d := diagnose()
			write := d.text
			if asJSON {
				write = d.json
			}
			if err := write(c.OutOrStdout()); err != nil {
				return err
			}
			if f.wanted {
				return f.fix(c, d)
			}
			return d.verdict()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&f.wanted, "fix", false, "mend what can be mended: load the module, give you access, install QEMU; "+
		"shows each command and asks first")
	c.Flags().BoolVar(&f.yes, "yes", false, "with --fix, do not ask")
	return c
}

// diagnose looks at everything.
func diagnose() *diagnosis {
	findings, kvmRunsLinux := checkKVM()
	if access := checkAccess(invokingUser()); access != nil {
		findings = append(findings, *access)
	}
	emulators, emulatorRunsLinux := checkEmulators()
	findings = append(findings, emulators...)
	findings = append(findings, checkMemory(), summary(kvmRunsLinux, emulatorRunsLinux))
	return &diagnosis{1, version(), kvmRunsLinux || emulatorRunsLinux, findings}
}

func (d *diagnosis) text(w io.Writer) error {
	for _, f := range d.Findings {
		if _, err := fmt.Fprintf(w, "%-4s  %-12s %s\n", f.State, f.What, f.Detail); err != nil {
			return err
		}
	}
	return nil
}

func (d *diagnosis) json(w io.Writer) error { return report.EncodeJSON(w, d) }

// summary says what runs where.
func summary(kvmRunsLinux, emulatorRunsLinux bool) finding {
	switch {
	case kvmRunsLinux:
		return found("linux_guests", "Linux guests", "ok", "--accel auto runs them on KVM")
	case emulatorRunsLinux:
		return found("linux_guests", "Linux guests", "ok",
			"--accel auto runs them on the emulator, at a fraction of KVM's speed")
	}
	return found("linux_guests", "Linux guests", "fail", "nothing here can run them; one of the above has to be mended")
}

// checkKVM also reports whether KVM is right for Linux guests.
func checkKVM() ([]finding, bool) {
	if err := (kvm.Backend{}).Check(kernel.Board(kernel.HostArch())); err != nil {
		detail := err.Error()
		if errors.Is(err, kvm.ErrPermission) {
			detail += "; for everybody, as on a hosted runner: " + udevRule
		}
		return []finding{{"kvm", "KVM", "warn", detail, loadModule(err)}}, false
	}
	findings := []finding{found("kvm", "KVM", "ok", fmt.Sprintf("%s opens, its API version is right, and it has all %d "+
		"capabilities that a machine needs: it runs %s guests",
		kvm.DefaultDevice, len(kvm.Capabilities()), kernel.HostArch()))}
	if kernel.HostArch() == "arm64" {
		caches := checkCaches()
		if findings = append(findings, caches); caches.State != "ok" {
			return findings, false
		}
	}
	speed, err := (kvm.Backend{}).KernelSpeed(speedLimit)
	if err != nil {
		return append(findings, found("kernel_mode", "kernel mode", "warn", err.Error())), false
	}
	rate := fmt.Sprintf("%.3g million instructions a second in a guest's kernel mode", speed/1e6)
	if speed < accel.UsableSpeed {
		return append(findings, found("kernel_mode", "kernel mode", "warn",
			rate+": KVM emulates it here (nested?). demo runs at full speed, Linux guests would take minutes")), false
	}
	return append(findings, found("kernel_mode", "kernel mode", "ok", rate)), true
}

// checkCaches looks at what only arm64 hosts may lack, for Linux guests alone.
func checkCaches() finding {
	err := (kvm.Backend{}).CheckUncached()
	switch {
	case errors.Is(err, kvm.ErrIncoherent):
		return found("caches", "caches", "warn", err.Error()+"; on KVM, Linux guests need --shm-reserve cacheable, and "+
			"a kernel without CONFIG_STRICT_DEVMEM; demo needs neither")
	case err != nil:
		return found("caches", "caches", "warn", err.Error())
	}
	return found("caches", "caches", "ok",
		"the processors have FEAT_S2FWB: Linux guests share the ring with this host as it is")
}

// checkEmulators looks at the emulator of each architecture, and also reports whether that of this host's runs Linux
// guests.
func checkEmulators() (findings []finding, runsLinux bool) {
	for _, arch := range guest.Architectures {
		path, version, err := (qemu.Backend{}).Check(kernel.Board(arch))
		if err != nil {
			findings = append(findings, finding{"emulator_" + arch, "emulator", "warn",
				fmt.Sprintf("for %s guests: %v", arch, err), installEmulator(arch, err)})
			continue
		}
		findings = append(findings,
			found("emulator_"+arch, "emulator", "ok",
				fmt.Sprintf("%s, QEMU %s: it runs %s guests", path, version, arch)))
		runsLinux = runsLinux || arch == kernel.HostArch()
	}
	return findings, runsLinux
}

func checkMemory() finding {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return found("memory", "memory", "warn", err.Error())
	}
	var kib uint64
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			break
		}
	}
	detail := fmt.Sprintf("%d MiB available", kib>>10)
	if kib<<10 < usefulMemory {
		return found("memory", "memory", "warn", fmt.Sprintf("%s: a Linux guest wants %d; give --memory what it needs "+
			"and no more", detail, vm.DefaultMemory>>20))
	}
	return found("memory", "memory", "ok", detail)
}
