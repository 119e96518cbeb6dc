package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/guide"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// followed are the pages whose blocks of sh a test runs word by word, and compares what they print with the page.
var followed = map[string]proof{
	"docs/ci.md":              {"test/engines", "TestGuide"},
	"docs/guide-developer.md": {"test/docs", "TestDeveloperGuide"},
	"docs/schedulers.md":      {"test/linux", "TestSchedExtGuide"},
	"docs/report.md":          {"test/engines", "TestReportGuide"},
	"docs/tutorial.md":        {"test/linux", "TestSchedExtTutorial"},
}

// proof is a test that shows something.
type proof struct{ dir, test string }

// others are the blocks of commands that are followed by no test as they are: they need what no test has, such as root
// on a user's machine, or stand for many like them. Each is named by its page and the beginning of its first line, and
// has a test that runs these commands in its own place, or a reason why none does.
var others = []struct {
	page, begins string
	by           proof
	reason       string
}{
	{page: "README.md", begins: "ktstr-vmm demo", by: proof{"test/linux", "TestGoTestExec"}},
	{page: "README.md", begins: "make build && sudo",
		reason: "installs into the system; test/release builds the same"},
	{page: "README.md", begins: "sudo apt install", by: proof{"test/release", "TestPackages"}},
	{page: "README.md", begins: "ktstr-vmm run --kernel vmlinuz-6.12 -- ./my-test",
		by: proof{"test/linux", "TestGoTestExec"}},
	{page: "README.md", begins: "ktstr-vmm run -it", by: proof{"test/linux", "TestInteractive"}},
	{page: "README.md", begins: "echo 'TEST", by: proof{"test/linux", "TestMessages"}},
	{page: "README.md", begins: "sudo scripts/fetch-linux", reason: "fetches kernels; make test begins with it"},
	{page: "README.md", begins: "ktstr-vmm run --kernel Image-6.12", by: proof{"test/linux", "TestGoTestExec"}},
	{page: "README.md", begins: "ktstr-vmm inspect ring.bin", by: proof{"test/linux", "TestArm64Inspect"}},
	{page: "docs/call-area.md", begins: "KTSTR_SHM_BASE",
		reason: "a kernel's command line; TestParams of pkg/call reads such a one"},
	{page: "docs/ci.md", begins: "$ ktstr-vmm/configs/slurm/submit.sh", by: proof{"test/engines", "TestSlurm"}},
	{page: "docs/ci.md", begins: "run=build-42", by: proof{"test/schemas", "TestKubernetesGuide"}},
	{page: "docs/config.md", begins: "ktstr-vmm run --config", by: proof{"configs/schema", "TestShippedConfigs"}},
	{page: "docs/config.md", begins: "$ ktstr-vmm demo --config", by: proof{"cmd/ktstr-vmm", "TestBadConfigs"}},
	{page: "docs/control.md", begins: "ktstr-vmm ps", by: proof{"cmd/ktstr-vmm", "TestCtl"}},
	{page: "docs/control.md", begins: "echo '{", by: proof{"pkg/control", "TestDocumentedRequests"}},
	{page: "docs/exporter.md", begins: "$ ktstr-vmm exporter", by: proof{"test/prometheus", "TestDocumentation"}},
	{page: "docs/exporter.md", begins: "cp ktstr-vmm-exporter", by: proof{"cmd/ktstr-vmm", "TestExporterSystemd"}},
	{page: "docs/kernels.md", begins: "ktstr-vmm run --kernel ~/linux --module",
		by: proof{"test/linux", "TestSchedExtModules"}},
	{page: "docs/kernels.md", begins: "loading the kernel module",
		by: proof{"test/linux", "TestSchedExtModuleFails"}},
	{page: "docs/kernels.md", begins: "ktstr-vmm kernel config",
		reason: "half an hour; scripts/build-linux does the same"},
	{page: "docs/kernels.md", begins: "make -C ~/linux/tools", by: proof{"test/linux", "TestSchedExtOfKernel"}},
	{page: "docs/prometheus.md", begins: "$ ", by: proof{"test/prometheus", "TestDocumentation"}},
	{page: "docs/prometheus.md", begins: "mkdir -p /var/lib/grafana",
		reason: "no test has Grafana; TestDashboard reads the files"},
	{page: "docs/prometheus.md", begins: "histogram_quantile", reason: "a query, not a command"},
	{page: "docs/suites.md", begins: "ktstr-vmm suite configs/suite.yaml",
		by: proof{"cmd/ktstr-vmm", "TestFirstSuite"}},
	{page: "docs/suites.md", begins: "$ ktstr-vmm suite nightly.yaml",
		by: proof{"cmd/ktstr-vmm", "TestMachineScripts"}},
	{page: "docs/suites.md", begins: "ktstr-vmm suite nightly.yaml --shard", by: proof{"test/engines", "TestGuide"}},
	{page: "docs/suites.md", begins: "$ ktstr-vmm suite compare", by: proof{"test/engines", "TestGuide"}},
	{page: "docs/topology.md", begins: "ktstr-vmm run", by: proof{"test/linux", "TestX86Lscpu"}},
	{page: "docs/tutorial.md", begins: "git clone", reason: "needs a network; the test has this clone"},
	{page: "docs/tutorial.md", begins: "sudo install",
		reason: "reads the host's own kernel, which is root's on some"},
	{page: "docs/wire-protocol.md", begins: "KTSTR_SHM_BASE",
		reason: "a kernel's command line; TestWireParameters reads it"},
}

var (
	fence    = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	indented = regexp.MustCompile(`(?m)(?:^|\n)\n((?:    [^\n]*\n)+)`)
)

// commands are the first lines of the blocks of a page that are not sh and may be commands, and whether it has any sh.
func commands(text string) (first []string, sh bool) {
	for _, block := range fence.FindAllStringSubmatch(text, -1) {
		switch {
		case block[1] == "sh":
			sh = true
		case block[1] == "console" || block[1] == "bash" || strings.HasPrefix(block[2], "$ "):
			line, _, _ := strings.Cut(block[2], "\n")
			first = append(first, line)
		}
	}
	for _, block := range indented.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		line, _, _ := strings.Cut(strings.TrimSpace(block[1]), "\n")
		first = append(first, line)
	}
	return first, sh
}

// Every block of commands in the documentation is run by a test, or there is a reason why not.
func TestCommands(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"README.md"}
	for _, p := range pages {
		names = append(names, "docs/"+filepath.Base(p))
	}
	used := make([]bool, len(others))
	for _, name := range names {
		first, sh := commands(page(t, name))
		if by, found := followed[name]; sh != found {
			t.Errorf("%s has blocks of sh: %v; a test follows them: %v, %v", name, sh, found, by)
		}
		for _, line := range first {
			known := false
			for i, o := range others {
				if o.page == name && strings.HasPrefix(line, o.begins) {
					known, used[i] = true, true
				}
			}
			if !known {
				t.Errorf("%s: no test runs the block that begins with %q: make it a block of sh in a page that is followed, "+
					"or say in others why not", name, line)
			}
		}
	}
	for i, o := range others {
		switch {
		case !used[i]:
			t.Errorf("%s has no block that begins with %q", o.page, o.begins)
		case o.by.test != "" && !hasTest(t, o.by.dir, o.by.test):
			t.Errorf("%s: %s has no %s", o.page, o.by.dir, o.by.test)
		case (o.by.test == "") == (o.reason == ""):
			t.Errorf("%s, %q: it has a test or a reason", o.page, o.begins)
		}
	}
	for name, by := range followed {
		if !hasTest(t, by.dir, by.test) {
			t.Errorf("%s: %s has no %s", name, by.dir, by.test)
		}
	}
}

// The guide is followed word by word.
func TestDeveloperGuide(t *testing.T) {
	if testing.Short() {
		t.Skip("in the long form")
	}
	t.Parallel()
	testenv.Backend(t)
	home := t.TempDir()
	build := exec.Command(testenv.Tool(t, "go"), "build", "-o", filepath.Join(home, "bin", "ktstr-vmm"), "./cmd/ktstr-vmm")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	env := append(os.Environ(), "HOME="+home, "PATH="+filepath.Join(home, "bin")+":"+os.Getenv("PATH"),
		"XDG_RUNTIME_DIR="+home) // where nobody else's runs are
	guide.Follow(t, filepath.Join(root, "docs", "guide-developer.md"), home, env, 9)
}
