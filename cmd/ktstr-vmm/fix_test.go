package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
)

// sickHost is a host that lacks things: its /dev, /etc, processor and programs are a test's, which keep what they are
// called with.
type sickHost struct {
	t       *testing.T
	program string
	unshare string
	dir     string
	env     []string
	as      []string // what runs doctor as another user
}

// newSickHost makes one. Its package manager "installs" a QEMU, and its udevadm gives /dev/kvm to the group.
func newSickHost(t *testing.T, program string) *sickHost {
	t.Helper()
	h := &sickHost{t: t, program: program, unshare: testenv.Tool(t, "unshare"), dir: t.TempDir()}
	calls := `echo "${0##*/} $*" >>` + h.path("calls") + "\n"
	for name, script := range map[string]string{
		"modprobe": "mkdir " + h.path("modules/$1"), "groupadd": "", "getent": "exit 0",
		"apt-get": `[ "$1" = install ] || exit 0
			for arch in x86_64 aarch64; do
				printf '#!/bin/sh\necho QEMU emulator version 9.0.0\n' >` + h.path("bin/qemu-system-$arch") + `
				chmod +x ` + h.path("bin/qemu-system-$arch") + `
			done`,
		"udevadm": `[ "$1" = control ] || { chgrp kvm /dev/kvm && chmod 660 /dev/kvm; }`,
		"usermod": `sed -i "s/^kvm:.*/&$3/" /etc/group`,
	} {
		h.file("bin/"+name, "#!/bin/sh\n"+calls+script+"\n")
	}
	for _, name := range []string{"sh", "mkdir", "chmod", "chgrp", "sed"} {
		if err := os.Symlink(testenv.Tool(t, name), h.path("bin/"+name)); err != nil {
			t.Fatal(err)
		}
	}
	h.file("calls", "")
	h.file("modules/kvm/refcnt", "0\n")
	h.file("cpuinfo", "flags\t\t: fpu vmx sse\n")
	h.file("etc/passwd", "root:x:0:0::/:/bin/sh\ntester:x:1234:1234::/:/bin/sh\n")
	h.file("etc/group", "root:x:0:\ntester:x:1234:\nkvm:x:104:\n")
	return h
}

func (h *sickHost) path(name string) string { return filepath.Join(h.dir, name) }

func (h *sickHost) file(name, content string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(content), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

// command is doctor on this host. What is there of /dev is in a folder that outlives it.
func (h *sickHost) command(args ...string) *exec.Cmd {
	script := `mkdir -p "$D/dev" && : >"$D/dev/null" && mount --bind /dev/null "$D/dev/null" &&
		mount --rbind "$D/dev" /dev && mount --bind "$D/etc" /etc && mount --bind "$D/cpuinfo" /proc/cpuinfo &&
		mount --bind "$D/modules" /sys/module &&
		PATH=$D/bin exec "$@"`
	args = slices.Concat([]string{"--mount", "/bin/sh", "-c", script, "sh"}, h.as, []string{h.program, "doctor"}, args)
	cmd := exec.Command(h.unshare, args...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "D=" + h.dir}, h.env...)
	return cmd
}

// doctor runs it without a terminal.
func (h *sickHost) doctor(code int, args ...string) (stdout, stderr string) {
	h.t.Helper()
	cmd := h.command(args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	if got := ends(h.t, cmd); got != code {
		h.t.Errorf("doctor %q: exit code %d, want %d\n%s%s", args, got, code, &out, &errOut)
	}
	return out.String(), errOut.String()
}

// calls are what programs were called with since the last time.
func (h *sickHost) calls() []string {
	h.t.Helper()
	text, err := os.ReadFile(h.path("calls"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.file("calls", "")
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
}

func (h *sickHost) called(want ...string) {
	h.t.Helper()
	if got := h.calls(); !slices.Equal(got, want) {
		h.t.Errorf("called:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// doctor --fix does nothing unless it is told to, then what it shows, and looks again.
func TestDoctorFix(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", os.ErrPermission)
	}
	for _, dir := range []string{"/etc", "/sys/module"} { // the bed has no more than its tests need
		if _, err := os.Stat(dir); err != nil {
			testenv.Missing(t, dir, err)
		}
	}
	path := program(t)
	const update = "apt-get update"
	install := func(name string) string { return "apt-get install -y --no-install-recommends " + name }
	installX86, installArm := install("qemu-system-x86"), install("qemu-system-arm")
	var modprobe []string // KVM is no module on arm64
	if kernel.HostArch() == "x86_64" {
		modprobe = []string{"modprobe kvm_intel"}
	}

	t.Run("module and QEMU", func(t *testing.T) {
		h := newSickHost(t, path)
		var d diagnosis
		text, _ := h.doctor(125, "--json")
		if err := json.Unmarshal([]byte(text), &d); err != nil || d.Findings[0].ID != "kvm" ||
			!slices.Equal(d.Findings[0].Fix, modprobe) {
			t.Errorf("%v: %s", err, text)
		}
		shown, says := h.doctor(125, "--fix")
		for _, line := range append(modprobe, update, "DEBIAN_FRONTEND=noninteractive "+installX86) {
			if !strings.Contains(shown, "\n    # "+line+"\n") {
				t.Errorf("no %q in\n%s", line, shown)
			}
		}
		const why = "ktstr-vmm: nothing was done: there is no terminal to ask on; --yes does it without asking\n"
		if says != why {
			t.Errorf("it says %s", says)
		}
		h.called()
		out, _ := h.doctor(0, "--fix", "--yes")
		if _, after, _ := strings.Cut(out, "\nAfter that:\n"); !strings.Contains(after, "ok    Linux guests") {
			t.Errorf("%s", out)
		}
		h.called(append(modprobe, update, installX86, update, installArm)...)
		out, _ = h.doctor(0, "--fix", "--yes") // what is there stays as it is
		if h.called(); !strings.Contains(out, "There is nothing that --fix can mend.\n") {
			t.Errorf("%s", out)
		}
	})

	t.Run("access", func(t *testing.T) {
		h := newSickHost(t, path)
		h.env = []string{"SUDO_USER=tester"}
		h.file("dev/kvm", "")
		if err := os.Chmod(h.path("dev/kvm"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.file("bin/qemu-system-x86_64", "#!/bin/sh\necho QEMU emulator version 9.0.0\n")
		h.file("bin/qemu-system-aarch64", "#!/bin/sh\necho QEMU emulator version 9.0.0\n")
		out, _ := h.doctor(0, "--fix", "--yes")
		if !strings.Contains(out, "\nwarn  KVM access   tester can't open /dev/kvm (-rw-------, group root); ") ||
			strings.Count(out, "warn  KVM access") != 1 {
			t.Errorf("%s", out)
		}
		h.called("getent group kvm", "udevadm control --reload-rules", "udevadm trigger --name-match=kvm",
			"usermod -aG kvm tester")
		rule, err := os.ReadFile(h.path("etc/udev/rules.d/99-ktstr-vmm.rules"))
		if want := `KERNEL=="kvm", GROUP="kvm", MODE="0660", OPTIONS+="static_node=kvm"` + "\n"; string(rule) != want {
			t.Errorf("the rule is %q, %v", rule, err)
		}
		if out, _ := h.doctor(0, "--fix", "--yes"); !strings.Contains(out, "There is nothing that --fix can mend.\n") {
			t.Errorf("%s", out)
		}
		h.file("etc/group", "root:x:0:\nkvm:x:104:\n") // the group has it, and not the user
		h.doctor(0, "--fix", "--yes")
		h.called("usermod -aG kvm tester")
	})

	t.Run("access by other means", func(t *testing.T) {
		h := newSickHost(t, path)
		h.file("dev/kvm", "")
		if err := os.Chmod(filepath.Dir(h.dir), 0o755); err != nil { // of tests, and nobody else's
			t.Fatal(err)
		}
		access := func(mode os.FileMode, group int, want string) {
			t.Helper()
			if err := errors.Join(os.Chmod(h.path("dev/kvm"), mode), os.Chown(h.path("dev/kvm"), 0, group)); err != nil {
				t.Fatal(err)
			}
			out, _ := h.doctor(125)
			_, got, _ := strings.Cut(out, "KVM access   ")
			if got, _, _ = strings.Cut(got, "\n"); got != want {
				t.Errorf("%v: %s", h.as, out)
			}
		}
		// A process has a group that its user has not, and the other way round.
		setpriv := testenv.Tool(t, "setpriv")
		h.as = []string{setpriv, "--reuid=1234", "--regid=1234", "--groups=104"}
		access(0o660, 104, "")
		h.as = []string{setpriv, "--reuid=1234", "--regid=1234", "--clear-groups"}
		access(0o660, 104, "tester can't open /dev/kvm (-rw-rw----, group kvm); a new group takes a new login")
		h.file("etc/group", "root:x:0:\ntester:x:1234:\nkvm:x:104:tester\n")
		access(0o660, 104, "tester has the group kvm, and this login has not: log in anew")

		h.as, h.env = nil, []string{"SUDO_USER=tester"}
		access(0o660, 104, "")
		access(0o600, 0, "tester can't open /dev/kvm (-rw-------, group root); a new group takes a new login")
		acl := binary.LittleEndian.AppendUint32(nil, 2) // linux/posix_acl_xattr.h
		for _, e := range []struct {
			tag, perm uint16
			id        uint32
		}{{1, 6, 0}, {2, 6, 1234}, {4, 0, 0}, {0x10, 6, 0}, {0x20, 0, 0}} {
			acl = binary.LittleEndian.AppendUint16(acl, e.tag)
			acl = binary.LittleEndian.AppendUint16(acl, e.perm)
			acl = binary.LittleEndian.AppendUint32(acl, e.id)
		}
		if err := unix.Setxattr(h.path("dev/kvm"), "system.posix_acl_access", acl, 0); err != nil {
			t.Fatal(err)
		}
		access(0o660, 0, "")
	})

	t.Run("asking", func(t *testing.T) {
		h := newSickHost(t, path)
		terminal := newPTY(t, 24, 80, nil)
		cmd := h.command("--fix")
		terminal.start(cmd)
		answers := []string{"no", "", "Y"} // of modprobe, and of each emulator
		if modprobe == nil {
			answers = answers[1:]
		}
		for i, answer := range answers {
			terminal.until("asked", func(text string) bool { return strings.Count(text, "Run this? [y/N] ") == i+1 })
			if i == len(answers)-1 {
				h.called()
			}
			if _, err := terminal.master.WriteString(answer + "\n"); err != nil {
				t.Fatal(err)
			}
		}
		if code := ends(t, cmd); code != 0 {
			t.Errorf("exit code %d\n%s", code, terminal.text())
		}
		h.called(update, installArm)
	})

	t.Run("failing", func(t *testing.T) {
		h := newSickHost(t, path)
		h.file("bin/apt-get", "#!/bin/sh\necho no network\nexit 100\n")
		out, says := h.doctor(125, "--fix", "--yes")
		if !strings.Contains(out, "no network\nThis failed: exit status 100\n") ||
			!strings.Contains(says, " steps failed\n") || !strings.Contains(out, "\nAfter that:\nwarn  KVM") {
			t.Errorf("%s%s", out, says)
		}
	})
}
