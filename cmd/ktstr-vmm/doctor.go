package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

const (
	// usableSpeed is the least at which Linux boots in seconds: in KVM that QEMU emulates, which
	// runs 40 million instructions a second here, it takes some ten.
	usableSpeed = 20e6 // instructions a second
	speedLimit  = 3 * time.Second

	usefulMemory = 1 << 30 // bytes
)

// finding is what doctor says of one thing.
type finding struct {
	what   string
	state  string // ok, warn, fail
	detail string
}

func doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, what is missing, and what to do about it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			findings := []finding{checkKVM()}
			if findings[0].state == "ok" {
				findings = append(findings, checkSpeed())
			}
			findings = append(findings, checkMemory(), checkQEMU())
			return printFindings(c.OutOrStdout(), findings)
		},
	}
}

func printFindings(w io.Writer, findings []finding) error {
	failed := false
	for _, f := range findings {
		if _, err := fmt.Fprintf(w, "%-4s  %-12s %s\n", f.state, f.what, f.detail); err != nil {
			return err
		}
		failed = failed || f.state == "fail"
	}
	if failed {
		return &exitError{code: run.CodeFailed}
	}
	return nil
}

func checkKVM() finding {
	if err := vm.CheckDevice(""); err != nil {
		return finding{"KVM", "fail", err.Error()}
	}
	return finding{"KVM", "ok", fmt.Sprintf("%s opens, its API version is right, and it has all %d capabilities that a machine needs", vm.DefaultDevice, len(vm.Capabilities()))}
}

func checkSpeed() finding {
	speed, err := vm.KernelSpeed("", speedLimit)
	if err != nil {
		return finding{"kernel mode", "fail", err.Error()}
	}
	rate := fmt.Sprintf("%.3g million instructions a second in a guest's kernel mode", speed/1e6)
	if speed < usableSpeed {
		return finding{"kernel mode", "warn", rate + ": KVM emulates it here (nested?). demo runs at full speed, Linux guests would take minutes: use a host whose KVM runs on hardware"}
	}
	return finding{"kernel mode", "ok", rate}
}

func checkMemory() finding {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return finding{"memory", "warn", err.Error()}
	}
	var kib uint64
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			break
		}
	}
	detail := fmt.Sprintf("%d MiB available", kib>>10)
	if kib<<10 < usefulMemory {
		return finding{"memory", "warn", detail + ": a Linux guest wants 512 MiB; give --memory what it needs and no more"}
	}
	return finding{"memory", "ok", detail}
}

func checkQEMU() finding {
	name := map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH]
	path, err := exec.LookPath(name)
	if err != nil {
		return finding{"QEMU", "warn", name + " is not installed; only tests that need Linux guests on a host without a fast KVM use it"}
	}
	return finding{"QEMU", "ok", path}
}
