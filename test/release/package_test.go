package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// elsewhere are the files of the rpm that have other places than in the deb.
var elsewhere = strings.NewReplacer(
	"/usr/share/licenses/ktstr-vmm/LICENSE", "/usr/share/doc/ktstr-vmm/copyright",
	"/usr/share/zsh/site-functions/", "/usr/share/zsh/vendor-completions/",
)

// packages is a clone in which "make package" has run, without a network.
type packages struct {
	clone, dist string
	root        string // where the deb is installed
}

// What "make package" makes without a network is a release: binaries, packages that install, with man pages,
// completions and units, what they are made of, checksums, and an image.
func TestPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("in short mode: it builds the program four times")
	}
	for _, tool := range []string{"git", "make", "go", "unshare"} {
		testenv.Tool(t, tool)
	}
	p := packages{clone: filepath.Join(t.TempDir(), "clone"), root: t.TempDir()}
	p.dist = filepath.Join(p.clone, "bin", "dist")
	clone(t, p.clone)
	tools := strings.TrimSpace(run(t, p.clone, "scripts/release-tools"))
	run(t, p.clone, "go", "list", "-deps", "-tags", "manpages", "./cmd/ktstr-vmm") // they may have to be fetched
	run(t, p.clone, filepath.Join(tools, "goreleaser"), "check")
	offline := []string{"env", "GOPROXY=off", "GOFLAGS=-mod=mod", "make", "--no-print-directory", "package"}
	if os.Getuid() == 0 { // who else may have no network of his own
		offline = append([]string{"unshare", "--net"}, offline...)
	}
	run(t, p.clone, offline...)
	if status := run(t, p.clone, "git", "status", "--porcelain"); status != "" {
		t.Errorf("it has changed the clone:\n%s", status)
	}
	t.Run("binaries", p.testBinaries)
	t.Run("checksums", p.testChecksums)
	t.Run("bill of materials", p.testMaterials)
	t.Run("archive", p.testArchive)
	t.Run("deb", p.testDeb)
	t.Run("rpm", p.testRPM)
	t.Run("files", p.testFiles)
	t.Run("man pages", p.testManPages)
	t.Run("completions", p.testCompletions)
	t.Run("image", p.testImage)
}

// glob returns the one file for each architecture that matches, in Go's names for them.
func (p packages) glob(t *testing.T, amd64, arm64 string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for arch, pattern := range map[string]string{"amd64": amd64, "arm64": arm64} {
		found, err := filepath.Glob(filepath.Join(p.dist, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %q, %v; want one file", pattern, found, err)
		}
		files[arch] = found[0]
	}
	return files
}

func (p packages) binaries(t *testing.T) map[string]string {
	t.Helper()
	return p.glob(t, "ktstr-vmm_linux_amd64_*/ktstr-vmm", "ktstr-vmm_linux_arm64_*/ktstr-vmm")
}

// The binaries are those of "make release".
func (p packages) testBinaries(t *testing.T) {
	for arch, file := range p.binaries(t) {
		name := "ktstr-vmm-linux-" + arch
		content := read(t, file)
		checkBinary(t, name, content, machines[name])
		if !bytes.Equal(content, read(t, filepath.Join(p.clone, "bin", "release", name))) {
			t.Errorf("%s is not the one of make release", name)
		}
		want := fmt.Sprintf("ktstr-vmm %s %s linux/%s\n", version, runtime.Version(), arch)
		if arch != runtime.GOARCH {
			continue
		}
		if out := run(t, p.clone, file, "version"); out != want {
			t.Errorf("%s version prints %q, want %q", name, out, want)
		}
	}
}

// All that is to be published has a checksum, which is right.
func (p packages) testChecksums(t *testing.T) {
	var listed, there []string
	for line := range strings.Lines(string(read(t, filepath.Join(p.dist, "SHA256SUMS")))) {
		listed = append(listed, strings.Fields(line)[1])
	}
	for _, pattern := range []string{"*.deb", "*.rpm", "*.tar.gz", "*.cdx.json"} {
		found, _ := filepath.Glob(filepath.Join(p.dist, pattern))
		for _, file := range found {
			there = append(there, filepath.Base(file))
		}
	}
	slices.Sort(listed)
	slices.Sort(there)
	if diff := cmp.Diff(there, listed); diff != "" || len(there) != 8 {
		t.Errorf("%d files; those that are there (-) and those that have a checksum (+):\n%s", len(there), diff)
	}
	run(t, p.dist, "sha256sum", "--check", "--strict", "SHA256SUMS")
}

// A bill of materials names the modules that are in the binary, the version of each, and nothing else.
func (p packages) testMaterials(t *testing.T) {
	type component struct{ Name, Version, Purl string }
	bills := p.glob(t, "*_amd64.cdx.json", "*_arm64.cdx.json")
	for arch, binary := range p.binaries(t) {
		var bill struct {
			BOMFormat string
			Metadata  struct{ Component component }
			// Components are the modules.
			Components []component
		}
		if err := json.Unmarshal(read(t, bills[arch]), &bill); err != nil {
			t.Errorf("%s: %v", bills[arch], err)
			continue
		}
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		want := []string{"std " + info.GoVersion}
		for _, m := range info.Deps {
			want = append(want, m.Path+" "+m.Version)
		}
		for _, c := range bill.Components {
			got = append(got, c.Name+" "+c.Version)
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: modules of the binary (-) and of the bill (+):\n%s", arch, diff)
		}
		c := bill.Metadata.Component
		if bill.BOMFormat != "CycloneDX" || c.Name != info.Main.Path || c.Version != version {
			t.Errorf("%s: a bill in %q of %q, %q", arch, bill.BOMFormat, c.Name, c.Version)
		}
	}
}

// The archive has one folder with the program in it, and what belongs to it.
func (p packages) testArchive(t *testing.T) {
	for arch, file := range p.glob(t, "*_amd64.tar.gz", "*_arm64.tar.gz") {
		folder := strings.TrimSuffix(filepath.Base(file), ".tar.gz")
		unpacked, err := gzip.NewReader(bytes.NewReader(read(t, file)))
		if err != nil {
			t.Fatal(err)
		}
		files := tarFiles(t, unpacked)
		for _, name := range []string{
			"LICENSE", "README.md", "man/ktstr-vmm.1.gz", "completions/bash", "systemd/ktstr-vmm-exporter.service",
			"examples/run.yaml", "examples/schema/run.json",
		} {
			if len(files[folder+"/"+name]) == 0 {
				t.Errorf("%s has no %s; it has %q", filepath.Base(file), name, slices.Sorted(maps.Keys(files)))
			}
		}
		list := run(t, p.dist, "tar", "-tvzf", file)
		if !regexp.MustCompile(`(?m)^-rwxr-xr-x .*/examples/slurm/submit\.sh$`).MatchString(list) {
			t.Errorf("in %s submit.sh can't be executed:\n%s", filepath.Base(file), list)
		}
		if !bytes.Equal(files[folder+"/ktstr-vmm"], read(t, p.binaries(t)[arch])) {
			t.Errorf("%s has another program", filepath.Base(file))
		}
	}
}

// The deb says what it is, needs nothing, is installed and removed by dpkg, and all in it is root's.
func (p *packages) testDeb(t *testing.T) {
	testenv.Tool(t, "dpkg-deb")
	for arch, file := range p.glob(t, "*_amd64.deb", "*_arm64.deb") {
		fields := run(t, p.dist, "dpkg-deb", "--field", file, "Package", "Version", "Architecture", "Depends",
			"Recommends", "Maintainer", "Homepage")
		want := "Package: ktstr-vmm\nVersion: " + strings.TrimPrefix(version, "v") + "\nArchitecture: " + arch +
			"\nRecommends: qemu-system-x86 | qemu-system-arm\n"
		for line := range strings.Lines(want) {
			if !strings.Contains(fields, line) {
				t.Errorf("%s has no line %q:\n%s", arch, line, fields)
			}
		}
		if strings.Contains(fields, "Depends:") {
			t.Errorf("%s depends on something:\n%s", arch, fields)
		}
		for line := range strings.Lines(run(t, p.dist, "dpkg-deb", "--contents", file)) {
			if !regexp.MustCompile(`^(drwxr-xr-x|-rw-r--r--|-rwxr-xr-x) root/root `).MatchString(line) {
				t.Errorf("%s: %s", arch, line)
			}
		}
		if arch != runtime.GOARCH {
			continue
		}
		if os.Getuid() != 0 {
			run(t, p.dist, "dpkg-deb", "--extract", file, p.root)
			continue
		}
		database(t, p.root)
		run(t, p.dist, "dpkg", "--root="+p.root, "--install", file)
		run(t, p.dist, "dpkg", "--root="+p.root, "--verify", "ktstr-vmm")

		gone := t.TempDir()
		database(t, gone)
		run(t, p.dist, "dpkg", "--root="+gone, "--install", file)
		run(t, p.dist, "dpkg", "--root="+gone, "--purge", "ktstr-vmm")
		if left := filesIn(t, filepath.Join(gone, "usr")); len(left) > 0 {
			t.Errorf("these are left of a package that was removed: %q", left)
		}
	}
}

// database makes an empty one of dpkg's.
func database(t *testing.T, root string) {
	t.Helper()
	dir := filepath.Join(root, "var", "lib", "dpkg")
	for _, sub := range []string{"info", "updates"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// The rpm has the same files, and needs nothing but what rpm itself must know.
func (p packages) testRPM(t *testing.T) {
	testenv.Tool(t, "rpm")
	for arch, file := range p.glob(t, "*.x86_64.rpm", "*.aarch64.rpm") {
		got := run(t, p.dist, "rpm", "--query", "--package", "--queryformat",
			"%{NAME} %{VERSION} %{ARCH} %{LICENSE} %{VENDOR}\n", file)
		want := "ktstr-vmm " + strings.TrimPrefix(version, "v") + " " + map[string]string{
			"amd64": "x86_64", "arm64": "aarch64"}[arch] + " Apache-2.0 The ktstr-vmm authors\n"
		if got != want {
			t.Errorf("%s: %q, want %q", arch, got, want)
		}
		for line := range strings.Lines(run(t, p.dist, "rpm", "--query", "--package", "--requires", file)) {
			if !strings.HasPrefix(line, "rpmlib(") {
				t.Errorf("%s requires %s", arch, line)
			}
		}
		recommends := run(t, p.dist, "rpm", "--query", "--package", "--recommends", file)
		if !strings.Contains(recommends, "qemu-system-x86") {
			t.Errorf("%s recommends %q", arch, recommends)
		}
		modes := run(t, p.dist, "rpm", "--query", "--package", "--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\n]", file)
		if !regexp.MustCompile(`(?m)^-rwxr-xr-x .*/examples/slurm/submit\.sh$`).MatchString(modes) {
			t.Errorf("in %s submit.sh can't be executed:\n%s", filepath.Base(file), modes)
		}
		run(t, p.dist, "rpm", "--checksig", "--nosignature", file)
		if arch != runtime.GOARCH || os.Getuid() != 0 {
			continue
		}
		root := t.TempDir()
		// No dependency of a package is in an empty database, not even what rpm itself provides.
		run(t, p.dist, "rpm", "--root", root, "--dbpath", "/var/lib/rpm", "--install", "--nodeps", file)
		installed := map[string][]byte{}
		for name, content := range filesIn(t, filepath.Join(root, "usr")) {
			installed[elsewhere.Replace("/usr/"+name)] = content
		}
		deb := map[string][]byte{}
		for name, content := range filesIn(t, filepath.Join(p.root, "usr")) {
			deb["/usr/"+name] = content
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(deb)), slices.Sorted(maps.Keys(installed))); diff != "" {
			t.Errorf("files of the deb (-) and the rpm (+):\n%s", diff)
		}
		for name, content := range deb {
			if !bytes.Equal(content, installed[name]) {
				t.Errorf("%s is another file in the rpm", name)
			}
		}
	}
}

// All that users copy is in the packages as it is here, and the units start what is installed.
func (p packages) testFiles(t *testing.T) {
	usr := filepath.Join(p.root, "usr")
	if !bytes.Equal(read(t, filepath.Join(usr, "bin", "ktstr-vmm")), read(t, p.binaries(t)[runtime.GOARCH])) {
		t.Error("/usr/bin/ktstr-vmm is another program")
	}
	examples := 0
	for name, content := range filesIn(t, filepath.Join(p.clone, "configs")) {
		copies := []string{filepath.Join("share/doc/ktstr-vmm/examples", name)}
		if unit, ok := strings.CutPrefix(name, "systemd/"); ok {
			copies = []string{"lib/systemd/system/" + unit, "lib/systemd/user/" + unit}
			start := regexp.MustCompile(`(?m)^ExecStart=(\S+)`).FindSubmatch(content)
			if start != nil && string(start[1]) != "/usr/bin/ktstr-vmm" {
				t.Errorf("%s starts %s", name, start[1])
			}
		}
		if strings.HasSuffix(name, ".go") {
			continue
		}
		examples++
		for _, file := range copies {
			ours, theirs := filepath.Join(p.clone, "configs", name), filepath.Join(usr, file)
			if got, err := os.ReadFile(theirs); err != nil || !bytes.Equal(got, content) {
				t.Errorf("configs/%s is not in the package as /usr/%s: %v", name, file, err)
			} else if x := executable(t, ours); x != executable(t, theirs) {
				t.Errorf("configs/%s can be executed: %t; /usr/%s: %t", name, x, file, !x)
			}
		}
	}
	if examples < 10 {
		t.Errorf("only %d files in configs", examples)
	}
	for _, file := range []string{"README.md", "copyright"} {
		read(t, filepath.Join(usr, "share", "doc", "ktstr-vmm", file))
	}
}

// commands returns the names of all commands, from the program's help: "", "kernel", "kernel config" and so on.
func (p packages) commands(t *testing.T, command string) []string {
	t.Helper()
	all := []string{command}
	_, list, _ := strings.Cut(p.help(t, command), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "help" {
			all = append(all, p.commands(t, strings.TrimSpace(command+" "+name))...)
		}
	}
	return all
}

func (p packages) help(t *testing.T, command string) string {
	t.Helper()
	args := append([]string{filepath.Join(p.root, "usr", "bin", "ktstr-vmm")}, strings.Fields(command)...)
	return run(t, p.root, append(args, "--help")...)
}

// Each command has a man page, which names its flags, and which man shows without a warning.
func (p packages) testManPages(t *testing.T) {
	testenv.Tool(t, "man")
	dir := filepath.Join(p.root, "usr", "share", "man", "man1")
	pages := filesIn(t, dir)
	commands := p.commands(t, "")
	if len(pages) != len(commands) || len(commands) < 10 {
		t.Errorf("%d pages for the commands %q", len(pages), commands)
	}
	flag := regexp.MustCompile(`(?m)^ +(?:-\w, )?(--[\w.-]+)`)
	for _, command := range commands {
		page := filepath.Join(dir, strings.ReplaceAll(strings.TrimSpace("ktstr-vmm "+command), " ", "-")+".1.gz")
		cmd := exec.Command("man", "--warnings", "--local-file", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=120", "MAN_KEEP_FORMATTING=", "MANROFFOPT=-c")
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil || stderr.Len() > 0 {
			t.Errorf("man %s: %v\n%s", page, err, &stderr)
		}
		text := stdout.String()
		_, flags, _ := strings.Cut(p.help(t, command), "\nFlags:\n")
		for _, match := range flag.FindAllStringSubmatch(flags, -1) {
			if !regexp.MustCompile(regexp.QuoteMeta(match[1]) + `\b`).MatchString(text) {
				t.Errorf("the page of %q has no %s:\n%s", command, match[1], text)
			}
		}
	}
}

// The shells load the completions from where packages put them, and complete commands and flags.
func (p packages) testCompletions(t *testing.T) {
	share := filepath.Join(p.root, "usr", "share")
	path := "PATH=" + filepath.Join(p.root, "usr", "bin") + string(os.PathListSeparator) + os.Getenv("PATH")
	for shell, script := range map[string]string{
		// bash-completion's own loader looks for the file by the command's name.
		"bash": `. /usr/share/bash-completion/bash_completion && _completion_loader ktstr-vmm
			complete() { COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
				COMPREPLY=(); __start_ktstr-vmm; echo ${COMPREPLY[@]}; }
			complete ktstr-vmm exp; complete ktstr-vmm run --metrics-te`,
		"fish": `complete -C 'ktstr-vmm exp'; complete -C 'ktstr-vmm run --metrics-te'`,
		// zsh lists what it would complete on a terminal; its loader alone says whose function it would call.
		"zsh": `fpath=("$SHARE"/zsh/vendor-completions $fpath); autoload -Uz compinit; compinit -u -D
			autoload +X $_comps[ktstr-vmm] && echo $_comps[ktstr-vmm]`,
	} {
		t.Run(shell, func(t *testing.T) {
			args := map[string][]string{"bash": {"--norc"}, "zsh": {"-f"}}[shell]
			cmd := exec.Command(testenv.Tool(t, shell), append(args, "-c", script)...)
			cmd.Env = append(os.Environ(), path, "XDG_DATA_DIRS="+share, "SHARE="+share, "HOME="+t.TempDir(),
				"BASH_COMPLETION_USER_DIR="+filepath.Join(share, "bash-completion"))
			if shell == "bash" {
				if _, err := os.Stat("/usr/share/bash-completion/bash_completion"); err != nil {
					testenv.Missing(t, "bash-completion", err)
				}
			}
			out, err := cmd.CombinedOutput()
			want := []string{"exporter", "--metrics-textfile"}
			if shell == "zsh" {
				want = []string{"_ktstr-vmm"}
			}
			for _, word := range want {
				if !slices.Contains(strings.Fields(string(out)), word) || err != nil {
					t.Errorf("%v, no %q:\n%s", err, word, out)
				}
			}
		})
	}
}

// The image has one layer with one file, the program of its architecture, which runs in it.
func (p packages) testImage(t *testing.T) {
	testenv.Tool(t, "buildah")
	if os.Getuid() != 0 {
		t.Skip("only root can build an image without being given users of his own")
	}
	storage := t.TempDir()
	buildah := func(args ...string) string {
		return run(t, p.clone, append([]string{"unshare", "--net", "buildah", "--storage-driver", "vfs",
			"--root", filepath.Join(storage, "root"), "--runroot", filepath.Join(storage, "run")}, args...)...)
	}
	for arch, binary := range p.binaries(t) {
		layout := filepath.Join(storage, arch)
		buildah("build", "--isolation", "chroot", "--platform", "linux/"+arch, "--tag", "localhost/ktstr-vmm:"+arch,
			"--file", "configs/container/Containerfile", filepath.Join("bin", "release"))
		buildah("push", "localhost/ktstr-vmm:"+arch, "oci:"+layout)
		checkImage(t, layout, arch, read(t, binary))
		if arch != runtime.GOARCH {
			continue
		}
		container := strings.TrimSpace(buildah("from", "--pull-never", "localhost/ktstr-vmm:"+arch))
		if out := buildah("run", "--isolation", "chroot", container, "/ktstr-vmm", "version"); !strings.HasPrefix(out,
			"ktstr-vmm "+version+" ") {
			t.Errorf("in the image, version prints %q", out)
		}
	}
}

// checkImage checks an image in a folder in OCI's layout.
func checkImage(t *testing.T, layout, arch string, binary []byte) {
	t.Helper()
	blob := func(digest string) []byte {
		return read(t, filepath.Join(layout, "blobs", strings.Replace(digest, ":", "/", 1)))
	}
	type descriptor struct{ Digest string }
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	var config struct {
		Architecture, OS string
		Config           struct{ Entrypoint []string }
	}
	decode(t, read(t, filepath.Join(layout, "index.json")), &index)
	decode(t, blob(index.Manifests[0].Digest), &manifest)
	decode(t, blob(manifest.Config.Digest), &config)
	start := config.Config.Entrypoint
	if config.Architecture != arch || config.OS != "linux" || !slices.Equal(start, []string{"/ktstr-vmm"}) {
		t.Errorf("the image is %+v", config)
	}
	if len(manifest.Layers) != 1 {
		t.Fatalf("the image has %d layers", len(manifest.Layers))
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(blob(manifest.Layers[0].Digest)))
	if err != nil {
		t.Fatal(err)
	}
	files := tarFiles(t, unpacked)
	if len(files) != 1 || !bytes.Equal(files["ktstr-vmm"], binary) {
		t.Errorf("the image has %q, want the program for %s alone", slices.Sorted(maps.Keys(files)), arch)
	}
}

func decode(t *testing.T, text []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(text, to); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// tarFiles returns the files of an archive, which has nothing but files and folders.
func tarFiles(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			t.Errorf("%s is no file, it is a %q", h.Name, h.Typeflag)
		}
		if files[h.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
}

// filesIn returns the files below a folder; none if there is no folder.
func filesIn(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return files
	}
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			files[name], err = os.ReadFile(path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

// executable reports whether all may execute a file.
func executable(t *testing.T, file string) bool {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()&0o111 == 0o111
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
