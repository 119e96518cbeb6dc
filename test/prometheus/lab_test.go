// Package prometheus tests what users copy for Prometheus and Grafana, and what docs/prometheus.md says, with the real
// programs: Prometheus, node_exporter, Pushgateway and promtool.
package prometheus

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
)

// Programs, as Debian names them.
const (
	prometheus   = "prometheus"
	promtool     = "promtool"
	nodeExporter = "prometheus-node-exporter"
	pushgateway  = "prometheus-pushgateway"
)

// Jobs, by which Prometheus tells the ways apart: those of configs/prometheus, and the one that is pushed.
const (
	byExporter = "ktstr-vmm-exporter"
	byTextfile = "node"
	byPush     = "ktstr-vmm"
)

var configs = filepath.Join("..", "..", "configs")

// tool is a program without which nothing here is tested anywhere, so that CI must not lack it.
func tool(t *testing.T, name string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%v; scripts/install-deps gets it", err)
	}
	return testenv.Tool(t, name)
}

// lab is a host of a test's own: folders, and addresses that nobody else has.
type lab struct {
	t       *testing.T
	dir     string
	program string            // ktstr-vmm
	native  bool              // Prometheus takes native histograms
	moved   map[string]string // the addresses here, by those in the configs and the documentation
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("in short mode: what goes on between goroutines is in other processes here")
	}
	for _, name := range []string{prometheus, promtool, nodeExporter, pushgateway} {
		tool(t, name)
	}
	testenv.Backend(t)
	dir, err := os.MkdirTemp("", "ktstr") // short, for the exporter's socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &lab{t: t, dir: dir, program: program(t), moved: map[string]string{}}
	for _, port := range []string{"9090", "9091", "9100", "9843"} {
		l.moved["127.0.0.1:"+port] = l.free()
	}
	return l
}

// program builds the command once.
func program(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("KTSTR_TEST_VMM"); path != "" {
		return path
	}
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var built string // the folder of the program that was built, or ""

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ktstr-vmm")
	if err != nil {
		return "", err
	}
	built = dir
	path := filepath.Join(dir, "ktstr-vmm")
	out, err := exec.Command("go", "build", "-o", path, "../../cmd/ktstr-vmm").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// free returns an address that is free: of loopback, where few look for ports, and a test process has a host's
// address of its own.
func (l *lab) free() string {
	l.t.Helper()
	pid := os.Getpid()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+pid>>16&0x7f, pid>>8&0xff, 1+pid&0x7f))
	if err != nil {
		l.t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// at is where something is here that is at a port of 127.0.0.1 by default.
func (l *lab) at(port string) string { return l.moved["127.0.0.1:"+port] }

// move puts the addresses of this lab into a text.
func (l *lab) move(text string) string {
	for from, to := range l.moved {
		text = strings.ReplaceAll(text, from, to)
	}
	return text
}

// environment is that of all programs here.
func (l *lab) environment() []string {
	return append(os.Environ(), "HOME="+l.dir, "XDG_RUNTIME_DIR="+l.dir, "XDG_STATE_HOME="+filepath.Join(l.dir, "state"),
		"RUNTIME_DIRECTORY=", "STATE_DIRECTORY=",
		"PATH="+filepath.Dir(l.program)+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// process is a program that runs.
type process struct {
	cmd  *exec.Cmd
	log  string // a file
	done chan struct{}
	err  error // once it is done
}

// start starts a program in the lab's folder. It ends with the test, and whatever becomes of the test's process.
func (l *lab) start(name string, args ...string) *process {
	l.t.Helper()
	p, err := l.begin(name, args...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if p.kill(); l.t.Failed() {
			l.t.Logf("%q:\n%s", p.cmd.Args, p.said())
		}
	})
	return p
}

// begin is start for goroutines.
func (l *lab) begin(name string, args ...string) (*process, error) {
	log, err := os.CreateTemp(l.dir, filepath.Base(name)+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{cmd: exec.Command(name, args...), log: log.Name(), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = l.dir, l.environment(), log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the death signal comes with the end of the thread that starts
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	l.t.Cleanup(p.kill)
	return p, nil
}

// kill ends a process and what it has started.
func (p *process) kill() {
	select {
	case <-p.done: // the number may be another's by now
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// said is the end of what it wrote.
func (p *process) said() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-2000):])
}

// wait returns the exit code.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(vmtest.HangLimit):
		p.kill()
		t.Fatalf("%q did not end in %v:\n%s", p.cmd.Args, vmtest.HangLimit, p.said())
	}
	return p.cmd.ProcessState.ExitCode()
}

// answers waits until an address answers, and the process is still there.
func (l *lab) answers(p *process, address, path string) *process {
	l.t.Helper()
	l.poll(func() error {
		select {
		case <-p.done:
			l.t.Fatalf("%q has ended: %v\n%s", p.cmd.Args, p.err, p.said())
		default:
		}
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	return p
}

// poll tries until there is no error; the last one fails the test.
func (l *lab) poll(try func() error) {
	l.t.Helper()
	for limit := time.Now().Add(vmtest.HangLimit); ; time.Sleep(100 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(limit) {
			l.t.Fatalf("not within %v: %v", vmtest.HangLimit, err)
		}
	}
}

func (l *lab) exporter(args ...string) *process {
	l.t.Helper()
	p := l.start(l.program, append([]string{"exporter", "--web.listen-address", l.at("9843")}, args...)...)
	return l.answers(p, l.at("9843"), "/healthz")
}

func (l *lab) nodeExporter() {
	l.t.Helper()
	dir := filepath.Join(l.dir, "textfiles")
	if err := os.Mkdir(dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	l.answers(l.start(nodeExporter, "--collector.disable-defaults", "--collector.textfile",
		"--collector.textfile.directory="+dir, "--web.listen-address="+l.at("9100")), l.at("9100"), "/")
}

func (l *lab) pushgateway() {
	l.t.Helper()
	l.answers(l.start(pushgateway, "--persistence.file=", "--web.listen-address="+l.at("9091")),
		l.at("9091"), "/-/ready")
}

// configure copies configs into the lab, with its addresses and intervals of a second for Prometheus, and returns the
// path of prometheus.yml.
func (l *lab) configure() string {
	l.t.Helper()
	dir := filepath.Join(l.dir, "configs")
	if err := os.CopyFS(dir, os.DirFS(configs)); err != nil {
		l.t.Fatal(err)
	}
	path := filepath.Join(dir, "prometheus", "prometheus.yml")
	text := readFile(l.t, path)
	for _, address := range []string{"127.0.0.1:9843", "127.0.0.1:9100", "127.0.0.1:9091", "_interval: 15s"} {
		if !strings.Contains(text, address) {
			l.t.Fatalf("%s has no %s", path, address)
		}
	}
	l.write(path, strings.ReplaceAll(l.move(text), "_interval: 15s", "_interval: 1s"))
	return path
}

func (l *lab) write(path, text string) {
	l.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// prometheus starts a Prometheus and returns its API.
func (l *lab) prometheus(config string, args ...string) promv1.API {
	l.t.Helper()
	data, err := os.MkdirTemp(l.dir, "data")
	if err != nil {
		l.t.Fatal(err)
	}
	l.answers(l.start(prometheus, append([]string{"--config.file=" + config, "--storage.tsdb.path=" + data,
		"--web.listen-address=" + l.at("9090")}, args...)...), l.at("9090"), "/-/ready")
	client, err := api.NewClient(api.Config{Address: "http://" + l.at("9090")})
	if err != nil {
		l.t.Fatal(err)
	}
	return promv1.NewAPI(client)
}

// read reads a file of the repository.
func read(t *testing.T, elements ...string) string {
	t.Helper()
	return readFile(t, filepath.Join(append([]string{"..", ".."}, elements...)...))
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
