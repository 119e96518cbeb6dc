package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/arm64"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

const (
	kvmGroup  = "kvm"
	rulesDir  = "/etc/udev/rules.d"
	rulesFile = rulesDir + "/99-ktstr-vmm.rules"
	groupRule = `KERNEL=="kvm", GROUP="` + kvmGroup + `", MODE="0660", OPTIONS+="static_node=kvm"`
)

// fixer mends what doctor finds.
type fixer struct{ wanted, yes bool }

// fix does what the findings say that mends them, each if the user agrees, and looks at everything again. A command is
// shown before it is run, and run as it is shown.
func (f *fixer) fix(c *cobra.Command, before *diagnosis) error {
	out := c.OutOrStdout()
	var steps []finding
	for _, x := range before.Findings {
		if len(x.Fix) > 0 {
			steps = append(steps, x)
		}
	}
	if len(steps) == 0 {
		fmt.Fprintln(out, "\nThere is nothing that --fix can mend.")
		return before.verdict()
	}
	in := c.InOrStdin()
	if why := f.cannot(in); why != "" {
		for _, x := range steps {
			showStep(out, x)
		}
		return &exitError{run.CodeFailed, fmt.Errorf("nothing was done: %s", why)}
	}
	answers := bufio.NewReader(in)
	done, failed := 0, 0
	for _, x := range steps {
		showStep(out, x)
		if !f.yes && !agreed(out, answers) {
			continue
		}
		done++
		for _, line := range x.Fix {
			shell := exec.Command("sh", "-c", line)
			shell.Stdout, shell.Stderr = out, c.ErrOrStderr()
			if err := shell.Run(); err != nil {
				failed++
				fmt.Fprintf(out, "This failed: %v\n", err)
				break
			}
		}
	}
	if done == 0 {
		fmt.Fprintln(out, "\nNothing was done.")
		return before.verdict()
	}
	fmt.Fprintln(out, "\nAfter that:")
	after := diagnose()
	if err := after.text(out); err != nil {
		return err
	}
	if failed > 0 {
		return &exitError{run.CodeFailed, fmt.Errorf("%d of %d steps failed", failed, done)}
	}
	return after.verdict()
}

// cannot says why nothing may be done; "" if something may.
func (f *fixer) cannot(in io.Reader) string {
	switch {
	case os.Geteuid() != 0:
		return "this takes root: sudo ktstr-vmm doctor --fix"
	case !f.yes && !isTTY(in):
		return "there is no terminal to ask on; --yes does it without asking"
	}
	return ""
}

// showStep shows what a step mends, and its commands.
func showStep(out io.Writer, x finding) {
	fmt.Fprintf(out, "\n%s: %s\n", x.What, x.Detail)
	for _, line := range x.Fix {
		fmt.Fprintf(out, "    # %s\n", line)
	}
}

// agreed asks whether a step may be done. All but a yes is a no.
func agreed(out io.Writer, answers *bufio.Reader) bool {
	fmt.Fprint(out, "Run this? [y/N] ")
	answer, err := answers.ReadString('\n')
	if err != nil {
		fmt.Fprintln(out)
		return false
	}
	return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer)))
}

// verdict is doctor's exit code.
func (d *diagnosis) verdict() error {
	if !d.Linux {
		return &exitError{code: run.CodeFailed}
	}
	return nil
}

// loadModule is how to get a /dev/kvm that is not there. It takes a processor that says that it can virtualize, and has
// a module for that; an arm64 kernel has KVM built in.
func loadModule(err error) []string {
	_, missing := os.Stat(kvm.DefaultDevice)
	if !errors.Is(err, kvm.ErrNoKVM) || missing == nil {
		return nil
	}
	text, _ := os.ReadFile("/proc/cpuinfo") // without it there is no module to be named
	flags := regexp.MustCompile(`(?m)^flags\s*:.*$`).Find(text)
	for flag, module := range map[string]string{"vmx": "kvm_intel", "svm": "kvm_amd"} {
		if slices.Contains(strings.Fields(string(flags)), flag) {
			if _, err := os.Stat("/sys/module/" + module); err == nil {
				return nil // it is the device that is kept from us, as in a container
			}
			return []string{"modprobe " + module}
		}
	}
	return nil
}

// installEmulator is how to install an emulator that is not there, by this host's package manager.
func installEmulator(arch string, err error) []string {
	if !errors.Is(err, qemu.ErrNotInstalled) {
		return nil
	}
	board := map[string]vm.Board{"x86_64": x86.Board{}, "arm64": arm64.Board{}}[arch]
	if _, err := exec.LookPath("apt-get"); err == nil {
		return []string{"apt-get update",
			"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends " + qemu.Package(board, "apt")}
	}
	if _, err := exec.LookPath("dnf"); err == nil {
		return []string{"dnf install -y " + qemu.Package(board, "dnf")}
	}
	return nil
}

// invokingUser is who asked: the one who called sudo, if root runs this for somebody.
func invokingUser() *user.User {
	if name := os.Getenv("SUDO_USER"); name != "" && os.Geteuid() == 0 {
		if u, err := user.Lookup(name); err == nil {
			return u
		}
	}
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return nil // without a name there is nothing to add to a group
	}
	return u
}

// checkAccess says how a user gets at a KVM device that is kept from him; nil if it is not.
func checkAccess(u *user.User) *finding {
	info, err := os.Stat(kvm.DefaultDevice)
	if err != nil || u == nil || u.Uid == "0" {
		return nil
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	groups, err := u.GroupIds()
	if err != nil || opensKVM(u, groups) {
		return nil
	}
	const readWrite = 0o6
	group := strconv.Itoa(int(stat.Gid))
	mode := info.Mode().Perm()
	byGroup := mode>>3&readWrite == readWrite
	if byGroup && slices.Contains(groups, group) {
		f := found("kvm_access", "KVM access", "warn", fmt.Sprintf("%s has the group %s, and this login has not: log in anew",
			u.Username, groupName(group)))
		return &f
	}
	f := found("kvm_access", "KVM access", "warn", fmt.Sprintf("%s can't open %s (%v, group %s); a new group takes a new "+
		"login", u.Username, kvm.DefaultDevice, mode, groupName(group)))
	if !byGroup || group == "0" {
		f.Fix = append(f.Fix, "getent group "+kvmGroup+" || groupadd --system "+kvmGroup,
			fmt.Sprintf("mkdir -p %s && echo '%s' >%s", rulesDir, groupRule, rulesFile),
			"udevadm control --reload-rules && udevadm trigger --name-match=kvm")
		group = kvmGroup
	}
	f.Fix = append(f.Fix, fmt.Sprintf("usermod -aG %s %s", quoteWord(groupName(group)), quoteWord(u.Username)))
	return &f
}

// opensKVM reports whether a user's processes may open the KVM device, or there is no telling. A mode does not tell: a
// device often has an access control list for who sits at the host. Root's own try does not tell either.
func opensKVM(u *user.User, groups []string) bool {
	try := exec.Command("/bin/sh", "-c", `test -r "$0" && test -w "$0"`, kvm.DefaultDevice)
	if os.Geteuid() == 0 {
		id := func(text string) uint32 {
			n, _ := strconv.ParseUint(text, 10, 32) // on Linux all of them are numbers
			return uint32(n)
		}
		as := &syscall.Credential{Uid: id(u.Uid), Gid: id(u.Gid)}
		for _, g := range groups {
			as.Groups = append(as.Groups, id(g))
		}
		try.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	}
	var no *exec.ExitError
	return !errors.As(try.Run(), &no)
}

// groupName is a group's name, or its number where it has none.
func groupName(id string) string {
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// quoteWord makes a word of the shell's.
func quoteWord(s string) string {
	if regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`).MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
