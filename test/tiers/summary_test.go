package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// said is test events in short: "ACTION [TEST [TEXT]]" lines of a package.
func said(pkg, lines string) string {
	var s strings.Builder
	for line := range strings.Lines(lines) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		f = append(f, "", "")
		switch f[0] {
		case "":
		case "attr":
			fmt.Fprintf(&s, `{"Action":"attr","Package":%q,"Test":%q,"Key":"backend","Value":%q}`+"\n", pkg, f[1], f[2])
		default:
			fmt.Fprintf(&s, `{"Action":%q,"Package":%q,"Test":%q,"Output":%q}`+"\n", f[0], pkg, f[1], f[2]+"\n")
		}
	}
	return s.String()
}

// summaryOf writes files of events and makes the closing lines of them.
func summaryOf(t *testing.T, ci bool, files map[string]string) (text string, ok bool) {
	t.Helper()
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "not-run.json")}
	for name, content := range files {
		path := filepath.Join(dir, name+".json")
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	all, err := readResults(paths...)
	if err != nil {
		t.Fatal(err)
	}
	var s strings.Builder
	ok = summarize(all).print(&s, ci)
	return s.String(), ok
}

const (
	runPkg = module + "/pkg/run"
	shmPkg = module + "/pkg/shm"
)

// whole is a host without KVM on which everything ran, some of it in the bed.
func whole() map[string]string {
	return map[string]string{
		"host": said(shmPkg, "run TestRing\npass TestRing\npass") + "no event\n" + said(runPkg, `
			run TestDecide
			pass TestDecide
			run TestFlood
			run TestFlood/emulator
			run TestFlood/emulator/large
			pass TestFlood/emulator/large
			pass TestFlood/emulator
			run TestFlood/kvm
			output TestFlood/kvm     run_test.go:1: this test needs KVM
			output TestFlood/kvm --- SKIP: TestFlood/kvm (0.00s)
			skip TestFlood/kvm
			pass TestFlood
			run TestStop
			attr TestStop kvm
			skip TestStop
			run TestSmall
			run TestSmall/emulator
			run TestSmall/emulator/x86_64
			pass TestSmall/emulator/x86_64
			run TestSmall/emulator/arm64
			pass TestSmall/emulator/arm64
			pass TestSmall/emulator
			run TestSmall/kvm
			skip TestSmall/kvm
			pass TestSmall
			pass`),
		"guests": said(runPkg+" [kvm, x86_64, bed]", `
			run TestFlood
			run TestFlood/emulator
			skip TestFlood/emulator
			run TestFlood/kvm
			run TestFlood/kvm/large
			pass TestFlood/kvm/large
			run TestFlood/kvm/small
			pass TestFlood/kvm/small
			pass TestFlood/kvm
			pass TestFlood
			run TestStop
			run TestStop/spin
			pass TestStop/spin
			pass TestStop
			run TestSmall
			run TestSmall/emulator
			skip TestSmall/emulator
			run TestSmall/kvm
			pass TestSmall/kvm
			pass TestSmall
			pass`) +
			said(runPkg+" [kvm, arm64, arm64-vhe]", "run TestDecide\npass TestDecide\npass") + // a unit test here
			said(linuxPkg+" [emulator, x86_64, 6.1, host]", "run TestExitCodes\npass TestExitCodes\npass") +
			said(linuxPkg+" [emulator, x86_64, 6.12, host]", "run TestExitCodes\npass TestExitCodes\npass") +
			said(linuxPkg+" [emulator, x86_64, 6.12-scx, host]", "run TestSchedExt\npass TestSchedExt\npass") +
			said(linuxPkg+" [emulator, arm64, 6.1, host]", "run TestExitCodes\npass TestExitCodes\npass") +
			said(linuxPkg+" [emulator, arm64, 6.12, host]", "run TestExitCodes\npass TestExitCodes\npass") +
			said(linuxPkg+" [kvm, arm64, 6.1, arm64-nvhe]", "run TestExitCodes\npass TestExitCodes\npass") +
			said(linuxPkg+" [kvm, arm64, 6.12, arm64-vhe]", "run TestExitCodes\npass TestExitCodes\npass") +
			said(linuxPkg+" [kvm, x86_64, 6.1, bed]", "run TestExitCodes\npass TestExitCodes\npass") +
			said(linuxPkg+" [kvm, x86_64, 6.12-scx, bed]", "run TestSchedExt\npass TestSchedExt\npass") +
			said(linuxPkg+" [kvm, x86_64, 6.12, bed]", "run TestExitCodes\npass TestExitCodes\npass"),
	}
}

func TestSummary(t *testing.T) {
	text, ok := summaryOf(t, true, whole())
	want := `
tier     back end  guest   kernel    where       ran  passed  failed  skipped
unit     -         -       -         host        2    2       0       0
machine  emulator  x86_64  -         host        2    2       0       0
machine  emulator  arm64   -         host        1    1       0       0
machine  kvm       x86_64  -         bed         4    4       0       0
machine  kvm       arm64   -         arm64-vhe   1    1       0       0
linux    emulator  x86_64  6.1       host        1    1       0       0
linux    emulator  x86_64  6.12      host        1    1       0       0
linux    emulator  x86_64  6.12-scx  host        1    1       0       0
linux    emulator  arm64   6.1       host        1    1       0       0
linux    emulator  arm64   6.12      host        1    1       0       0
linux    kvm       x86_64  6.1       bed         1    1       0       0
linux    kvm       x86_64  6.12      bed         1    1       0       0
linux    kvm       x86_64  6.12-scx  bed         1    1       0       0
linux    kvm       arm64   6.1       arm64-nvhe  1    1       0       0
linux    kvm       arm64   6.12      arm64-vhe   1    1       0       0

20 passed, 0 failed, 0 skipped
`
	if text != want || !ok {
		t.Errorf("%t, %s\nwant%s", ok, text, want)
	}
}

// Whatever goes wrong anywhere is named and, in CI, the end of it.
func TestSummaryFails(t *testing.T) {
	linux := module + "/test/linux [kvm, x86_64, 6.12, bed]"
	for name, tc := range map[string]struct {
		change func(files map[string]string)
		ciOnly bool
		says   []string
	}{
		"a test": {func(f map[string]string) { f["host"] += said(shmPkg, "run TestBad\nfail TestBad\nfail") }, false,
			[]string{"failed:\n  " + shmPkg + " TestBad (host)\n", "20 passed, 1 failed, 0 skipped"}},
		"a subtest is one failure": {func(f map[string]string) {
			f["guests"] += said(linux, "run TestX\nrun TestX/a\nfail TestX/a\nrun TestX/b\npass TestX/b\nfail TestX\nfail")
		}, false, []string{linuxPkg + " TestX/a (kvm, x86_64, 6.12, bed)\n", "21 passed, 1 failed, 0 skipped"}},
		"a parent by itself": {func(f map[string]string) {
			f["host"] += said(shmPkg, "run TestX\nrun TestX/a\npass TestX/a\nfail TestX\nfail")
		}, false, []string{shmPkg + " TestX (host)\n", "21 passed, 1 failed"}},
		"a test that does not end": {func(f map[string]string) {
			f["guests"] += said(linux,
				"run TestX\nrun TestX/a\nfail")
		}, false,
			[]string{"TestX/a (kvm, x86_64, 6.12, bed): it did not end", "20 passed, 1 failed"}},
		"a package that is not built": {func(f map[string]string) {
			f["race"] = said(runPkg,
				"output  cannot build\nfail")
		}, false,
			[]string{runPkg + " (race): cannot build\n", "20 passed, 1 failed"}},
		"a tier that did not run": {func(f map[string]string) {
			f["guests"] = strings.Split(f["guests"], "{\"Action\":\"run\",\"Package\":\""+linux)[0]
		}, true,
			[]string{"ran nowhere:\n  linux kvm x86_64 6.12\n", "19 passed, 0 failed, 0 skipped"}},
		"a test skipped everywhere": {func(f map[string]string) {
			f["race"] = f["host"]
			f["guests"] = strings.ReplaceAll(f["guests"], `"pass","Package":"`+runPkg+` [kvm, x86_64, bed]","Test":"TestStop`,
				`"skip","Package":"`+runPkg+` [kvm, x86_64, bed]","Test":"TestStop`)
		}, true, []string{"skipped wherever they could have run:\n  " + runPkg +
			" TestStop/spin: \n", "0 failed, 1 skipped"}},
		"a test skipped for a reason": {func(f map[string]string) {
			f["host"] += said(shmPkg,
				"run TestC\noutput TestC     writers_test.go:64: this test needs gcc\noutput TestC --- SKIP: TestC "+
					"(0.00s)\nskip TestC\npass")
		}, true, []string{shmPkg + " TestC: writers_test.go:64: this test needs gcc\n", "20 passed, 0 failed, 1 skipped"}},
		"nothing at all": {func(f map[string]string) { clear(f) }, true,
			[]string{"ran nowhere:\n  unit\n  machine emulator x86_64\n  linux emulator x86_64 6.1\n" +
				"  linux emulator x86_64 6.12\n  linux emulator x86_64 6.12-scx\n" +
				"  machine emulator arm64\n  linux emulator arm64 6.1\n" +
				"  linux emulator arm64 6.12\n  machine kvm x86_64\n  linux kvm x86_64 6.1\n  linux kvm x86_64 6.12\n" +
				"  linux kvm x86_64 6.12-scx\n" +
				"  machine kvm arm64\n  linux kvm arm64 6.1\n  linux kvm arm64 6.12\n",
				"\n0 passed, 0 failed, 0 skipped\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ci := range []bool{false, true} {
				files := whole()
				tc.change(files)
				text, ok := summaryOf(t, ci, files)
				if want := tc.ciOnly && !ci; ok != want {
					t.Errorf("CI %t: %t, want %t", ci, ok, want)
				}
				for _, says := range tc.says {
					if !strings.Contains(text, says) {
						t.Errorf("no %q in %s", says, text)
					}
				}
			}
		})
	}
}

// What goes into the bed is what was skipped for lack of KVM, not of a compiler.
func TestSkippedTests(t *testing.T) {
	all, err := parseResults(strings.NewReader(whole()["host"]+said(shmPkg, "run TestC\nskip TestC\npass")), "host")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := skippedTests(all,
		"kvm"), map[string][]string{runPkg: {"TestFlood", "TestStop", "TestSmall"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestLabels(t *testing.T) {
	for _, l := range []label{{"kvm", "x86_64", "6.12", "bed"}, {"emulator", "arm64", "", "host"}} {
		if pkg, got := parseLabel(runPkg + " " + l.String()); pkg != runPkg || got != l {
			t.Errorf("%s: %q, %v", l, pkg, got)
		}
	}
	if pkg, l := parseLabel(runPkg); pkg != runPkg || l != (label{}) {
		t.Errorf("%q, %v", pkg, l)
	}
}

// What a test binary prints becomes events; a code that is not 0 fails the package, whatever it
// printed.
func TestEvents(t *testing.T) {
	for code, failed := range map[int]bool{0: false, 1: true} {
		var s strings.Builder
		e := &events{w: &s}
		out, err := e.of(runPkg + " [kvm, x86_64, bed]")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(out, "\x16=== RUN   TestA\nsome output\x16--- PASS: TestA (0.00s)\n\x16PASS\n")
		if err := out.end(code); err != nil {
			t.Fatal(err)
		}
		all, err := parseResults(strings.NewReader(s.String()), "")
		if err != nil || len(all) != 1 || all[0].failed != failed || all[0].where != "bed" ||
			all[0].tests["TestA"].action != "pass" {
			t.Errorf("code %d: %v, %s", code, err, s.String())
		}
	}
}
