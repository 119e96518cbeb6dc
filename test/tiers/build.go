package main

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ktstr/ktstr-vmm/test/bed"
)

// builder builds what runs in guests and in the bed, into a folder: all of it without cgo, for
// there is no libc.
type builder struct {
	dir string
	go_ map[string]string // see goInGuest, by architecture
}

// goCommand runs the go command in a folder and returns what it prints.
func goCommand(dir string, env []string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s%s", err, out, exit.Stderr)
		}
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// program builds what a release consists of, once, and returns the program for an architecture.
func (b *builder) program(goarch string) (string, error) {
	dir := filepath.Join(b.dir, "release")
	path := filepath.Join(dir, "ktstr-vmm-linux-"+goarch)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if out, err := exec.Command("scripts/release", dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("scripts/release: %w\n%s", err, out)
	}
	return path, nil
}

// test builds a package's test binary for an architecture, once.
func (b *builder) test(goarch, pkg string, flags ...string) (string, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(pkg, module+"/"), "/", "-") + "-" + goarch + ".test"
	path := filepath.Join(b.dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	_, err := goCommand("", []string{"GOARCH=" + goarch},
		append(append([]string{"test"}, flags...), "-c", "-o", path, pkg)...)
	return path, err
}

// hostHas is what this host's KVM can do.
type hostHas struct {
	kvm  bool // there is one
	fast bool // it runs Linux
}

// nativeFor says whether guests of an architecture need no bed for KVM.
func (h hostHas) nativeFor(arch string) bool { return h.fast && goNames[arch] == runtime.GOARCH }

// host asks the program's doctor.
func (b *builder) host() (hostHas, error) {
	vmm, err := b.program(runtime.GOARCH)
	if err != nil {
		return hostHas{}, err
	}
	out, err := exec.Command(vmm, "doctor").Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return hostHas{}, err
	}
	has := func(what string) bool { return strings.Contains("\n"+string(out), "\nok    "+what) }
	return hostHas{has("KVM"), has("kernel mode")}, nil
}

// goNames are Go's names of the architectures.
var goNames = map[string]string{"x86_64": "amd64", "arm64": "arm64"}

// notFor are the tests that are not for an architecture.
var notFor = map[string]string{"x86_64": "^TestArm64", "arm64": "^TestX86"}

// anyPlace are the Linux suite's tests of what neither a kernel nor a back end has a say in, but the agent and what it
// is given: the command's files, its environment, what it leaves behind. The emulator has them, on the newest kernel;
// in the bed each of their guests takes ten seconds and shows nothing else. Who asks for them by name gets them
// anywhere.
var anyPlace = []string{
	"^Test(Arm64Inspect|Arm64InspectTree|DynamicallyLinkedCommand|Example|GoTestExec|GuestEnvironment|LeftoverChild)$",
	"^Test(LikeAHost|MergedBase|ReadsTestdata|RefusedKernels|Release|SchedulerExitWithCommand)$",
	"^Test(ScriptAndIncludedTree|Testdata)$",
	"^TestSchedExt(IgnoresTerm|KernelFolder|ModuleFails|Modules|Replaced)$",
}

// anyKernel are those of what a kernel has no say in: calls, streams, messages, deadlines. Each back end has them, on
// the newest kernel.
var anyKernel = []string{
	"^Test(Arm64Vectors|BootsInARow|Control|Deadlines|Interactive|InteractiveEnds|ManyAtOnce|Messages|OutputIsExact)$",
	"^Test(SchedulerExit|ShellOnFailure|SlowReader|Stdin)$",
}

// linux is the Linux suite at a place, on a kernel. What runs in its guests is built for their architecture, the
// suite itself for the host's, which is goarch.
func (b *builder) linux(p place, kernel, goarch, run string) (suite, error) {
	s := suite{label: label{p.backend, p.arch, kernel, "host"}, pkg: linuxPkg, dir: "test/linux"}
	vmm, err := b.program(goarch)
	if err != nil {
		return s, err
	}
	if s.binary, err = b.test(goarch, linuxPkg, "-tags", "linuxbed"); err != nil {
		return s, err
	}
	helper, err := b.test(goNames[p.arch], linuxPkg, "-tags", "linuxbed")
	if err != nil {
		return s, err
	}
	example, err := b.test(goNames[p.arch], module+"/examples/latency")
	if err != nil {
		return s, err
	}
	if b.go_[goarch] == "" {
		if b.go_[goarch], err = goInGuest(goarch); err != nil {
			return s, err
		}
	}
	s.files = map[string]string{
		"KTSTR_TEST_VMM":     vmm,
		"KTSTR_TEST_EXAMPLE": example,
		"KTSTR_TEST_GO":      b.go_[goarch],
	}
	if goNames[p.arch] != goarch {
		s.files["KTSTR_TEST_HELPER"] = helper
		if s.files["KTSTR_TEST_GUEST_VMM"], err = b.program(goNames[p.arch]); err != nil {
			return s, err
		}
	}
	s.env = []string{"KTSTR_TEST_ACCEL=" + p.backend, "KTSTR_TEST_ARCH=" + p.arch}
	s.skip = []string{notFor[p.arch]}
	if kernel == schedExt {
		s.args = testFlags(cmp.Or(run, schedExtTests))
		return s, b.addSchedExt(&s)
	}
	s.args, s.skip = testFlags(run), append(s.skip, schedExtTests)
	if kernel != newest && run == "" {
		s.skip = append(append(s.skip, anyPlace...), anyKernel...)
	}
	if p.arch == "arm64" {
		if s.files["KTSTR_TEST_SHM"], err = b.test("arm64", module+"/pkg/shm"); err != nil {
			return s, err
		}
		return s, s.addArm64(kernel)
	}
	return s, s.addX86(kernel)
}

// linuxAt is the Linux suite at a place, on this host or in the bed.
func (b *builder) linuxAt(p place, kernel string, inBed bool, run string) (suite, error) {
	if inBed {
		return b.linuxInBed(p, kernel, run)
	}
	return b.linux(p, kernel, runtime.GOARCH, run)
}

// notInBed are the tests that the bed can't run: it has no lscpu, no Go command and no compiler, and QEMU looks for
// what faults on Device memory where there is more than one processor.
var notInBed = []string{
	"^TestX86Lscpu$", "^TestSchedExt(Guide|Tutorial)$", "^TestArm64CopyFaults", "^TestArm64RingIsDeviceMemory$/^C$",
}

// linuxInBed is the Linux suite on KVM in the bed: of arm64, each of the hosts has one of the kernels.
func (b *builder) linuxInBed(p place, kernel, run string) (suite, error) {
	host := "x86_64"
	if p.arch == "arm64" {
		host = map[string]string{"6.1": "arm64-nvhe", "6.12": "arm64-vhe"}[kernel]
	}
	s, err := b.linux(p, kernel, bed.Hosts[host].Arch, run)
	s.where, s.host = "bed", host
	s.args = append(s.args, "-test.short", "-test.parallel=1")
	s.skip = append(s.skip, notInBed...)
	if run == "" {
		s.skip = append(s.skip, anyPlace...)
	}
	if p.arch == "arm64" {
		s.where = host
	}
	return s, err
}

// findX86 returns a kernel's folder, and makes PATH begin with the busybox of x86_64 guests.
func (s *suite) findX86(kernel string) (dir string, err error) {
	if dir, err = bed.Find("linux-" + kernel); err != nil {
		return "", err
	}
	busybox, err := bed.Busybox()
	s.path = []string{filepath.Dir(busybox)}
	return dir, err
}

// addX86 adds what x86_64 guests need.
func (s *suite) addX86(kernel string) error {
	dir, err := s.findX86(kernel)
	if err != nil {
		return err
	}
	s.files["KTSTR_TEST_KERNEL"] = filepath.Join(dir, "vmlinuz")
	s.files["KTSTR_TEST_OTHER_KERNEL"] = filepath.Join(dir, "vmlinux")
	s.files["KTSTR_TEST_MODULE_KVM"] = filepath.Join(dir, "kvm.ko")
	s.files["KTSTR_TEST_MODULE_IRQBYPASS"] = filepath.Join(dir, "irqbypass.ko")
	return nil
}

// addSchedExt adds what x86_64 guests need that have a scheduler under test.
func (b *builder) addSchedExt(s *suite) error {
	dir, err := s.findX86(schedExt)
	if err != nil {
		return err
	}
	s.files["KTSTR_TEST_KERNEL"] = dir
	for name, example := range map[string]string{
		"KTSTR_TEST_SCHEDULER": "scheduler", "KTSTR_TEST_WORKLOAD": "workload", "KTSTR_TEST_SCX_STATS": "scx_stats",
	} {
		path := filepath.Join(b.dir, example)
		if _, err := goCommand("", []string{"GOARCH=amd64"}, "build", "-trimpath", "-o", path,
			"./examples/"+example); err != nil {
			return err
		}
		s.files[name] = path
	}
	return nil
}

// addArm64 adds what arm64 guests need. The suite is short there: what its long form looks for is x86_64's clock.
func (s *suite) addArm64(kernel string) error {
	dir, err := bed.Find("linux-" + kernel + "-arm64")
	if err != nil {
		return err
	}
	sysroot, err := bed.Find("sysroot-arm64")
	if err != nil {
		return err
	}
	s.files["KTSTR_TEST_KERNEL"] = filepath.Join(dir, "Image")
	s.files["KTSTR_TEST_OTHER_KERNEL"] = filepath.Join(dir, "Image.gz")
	s.files["KTSTR_TEST_SYSROOT"] = sysroot
	s.args = append(s.args, "-test.short")
	// The one that was fetched is newer than the installed one; where none was, the installed one is new.
	if emulator, err := bed.Find("qemu-system-arm"); err == nil {
		s.path = []string{filepath.Join(emulator, "usr", "bin")}
	}
	return nil
}

func testFlags(run string) []string {
	flags := []string{"-test.v=test2json", "-test.timeout=40m"}
	if run != "" {
		flags = append(flags, "-test.run="+run)
	}
	return flags
}

// machine are the suites of the packages that have machine tests, for the bed.
func (b *builder) machine(c choice) ([]suite, error) {
	vmm, err := b.program("amd64")
	if err != nil {
		return nil, err
	}
	list, err := goCommand("", nil, "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}",
		"./pkg/vm/...", "./pkg/run", "./cmd/ktstr-vmm")
	if err != nil {
		return nil, err
	}
	skipped := map[string][]string{}
	if c.host != "" {
		results, err := readResults(c.host)
		if err != nil {
			return nil, err
		}
		skipped = skippedTests(results, "kvm")
	}
	var suites []suite
	for pkg := range strings.FieldsSeq(list) {
		only := c.run
		if c.host != "" && only == "" {
			if len(skipped[pkg]) == 0 {
				continue
			}
			only = "^(" + strings.Join(skipped[pkg], "|") + ")$"
		}
		binary, err := b.test("amd64", pkg)
		if err != nil {
			return nil, err
		}
		suites = append(suites, suite{
			label:  label{backend: "kvm", arch: "x86_64", where: "bed"},
			host:   "x86_64",
			pkg:    pkg,
			binary: binary,
			dir:    strings.TrimPrefix(pkg, module+"/"),
			files:  map[string]string{"KTSTR_TEST_VMM": vmm},
			args:   append(testFlags(only), "-test.short"),
		})
	}
	return suites, nil
}

// crossPackages are those whose tests run on the bed's hosts of other architectures: machines, and what reads and
// writes a guest's memory.
var crossPackages = []string{"pkg/guestmem", "pkg/shm", "pkg/vm", "pkg/vm/kvm", "pkg/accel", "pkg/run",
	"cmd/ktstr-vmm"}

// cross are suites for a host of the bed, built for its architecture.
func (b *builder) cross(c choice, host string) ([]suite, error) {
	var suites []suite
	arch := bed.Hosts[host].Arch
	vmm, err := b.program(arch)
	if err != nil {
		return nil, err
	}
	for _, dir := range crossPackages {
		binary, err := b.test(arch, module+"/"+dir)
		if err != nil {
			return nil, err
		}
		suites = append(suites, suite{
			label:  label{backend: "kvm", arch: arch, where: host},
			host:   host,
			pkg:    module + "/" + dir,
			binary: binary,
			dir:    dir,
			files:  map[string]string{"KTSTR_TEST_VMM": vmm},
			args:   append(testFlags(c.run), "-test.short"),
		})
	}
	return suites, nil
}

// goTools are the tools that "go test" runs; it asks for vet even where it is told not to run it.
var goTools = []string{"asm", "compile", "link", "vet"}

// goInGuest is what "go test" needs where the Linux suite runs it, on a host of an architecture, in the cache: the
// toolchain, the sources of the packages that the module of that test uses, that module, and a cache in which they
// are compiled.
func goInGuest(goarch string) (string, error) {
	const source = "test/linux/testdata/module"
	version, err := goCommand("", nil, "version")
	if err != nil {
		return "", err
	}
	key := sha256.New()
	fmt.Fprintln(key, version, goarch, goTools, goNames)
	if err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(key, "%s\n%s\n", path, text)
		return err
	}); err != nil {
		return "", err
	}
	cache, err := bed.Cache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, fmt.Sprintf("go-in-guest_%.6x", key.Sum(nil)))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "making-go-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := fillGo(tmp, source, goarch); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) { // another clone made it
		return "", err
	}
	return dir, nil
}

func fillGo(dir, source, goarch string) error {
	goroot, err := goCommand("", nil, "env", "GOROOT")
	if err != nil {
		return err
	}
	packages, err := goCommand(source, nil, "list", "-deps", "-test", "-f", "{{if .Standard}}{{.Dir}}{{end}}", "./...")
	if err != nil {
		return err
	}
	files := []string{"VERSION", "go.env"}
	folders := []string{"pkg/include", "src", "src/vendor"}
	for pkg := range strings.FieldsSeq(packages) {
		rel, err := filepath.Rel(goroot, pkg)
		if err != nil {
			return err
		}
		folders = append(folders, rel)
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(goroot, folder))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && !strings.HasSuffix(e.Name(), "_test.go") && !strings.HasSuffix(e.Name(), ".bash") {
				files = append(files, filepath.Join(folder, e.Name()))
			}
		}
	}
	for _, file := range files {
		if err := copyFile(filepath.Join(goroot, file), filepath.Join(dir, "root", file)); err != nil {
			return err
		}
	}
	if err := buildGo(filepath.Join(dir, "root"), goarch); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(dir, "module"), os.DirFS(source)); err != nil {
		return err
	}
	for _, target := range goNames {
		if _, err := goCommand(filepath.Join(dir, "module"), []string{"GOCACHE=" + filepath.Join(dir, "cache"),
			"GOARCH=" + target}, "test", "-trimpath", "-vet=off", "-exec", "true", "./..."); err != nil {
			return err
		}
	}
	return nil
}

// buildGo builds the go command and its tools for an architecture: a release of Go has them for one.
func buildGo(root, goarch string) error {
	tools := []string{"build", "-trimpath", "-o", filepath.Join(root, "pkg", "tool", "linux_"+goarch) + "/"}
	for _, tool := range goTools {
		tools = append(tools, "cmd/"+tool)
	}
	env := []string{"GOARCH=" + goarch}
	if _, err := goCommand("", env, tools...); err != nil {
		return err
	}
	_, err := goCommand("", env, "build", "-trimpath", "-o", filepath.Join(root, "bin")+"/", "cmd/go")
	return err
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, text, info.Mode().Perm())
}
