package engines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/internal/guide"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/test/bed"
)

// inside is set in the environment of the test where it has processes and a network of its own.
const inside = "KTSTR_TEST_SLURM"

// A suite runs on a Slurm cluster of one node, with its own controller, node daemon and munge. All of it has a PID
// namespace of its own, in which nothing is left when the test is over, however it ends, and a network of its own, in
// which all ports are free.
func TestSlurm(t *testing.T) {
	if testing.Short() {
		t.Skip("in the long form")
	}
	if os.Getenv(inside) != "" {
		slurm(t)
		return
	}
	t.Parallel()
	if _, err := bed.Find("slurm"); err != nil {
		testenv.Missing(t, "Slurm", err)
	}
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", fmt.Errorf("Slurm's node daemon starts jobs as any user"))
	}
	whole(t)
	c := exec.Command(testenv.Tool(t, "unshare"), "--pid", "--fork", "--kill-child", "--mount-proc", "--net", os.Args[0],
		"-test.run=^TestSlurm$", "-test.v", "-test.timeout=10m")
	c.Env = append(os.Environ(), inside+"="+built.dir)
	runtime.LockOSThread() // the signal comes when this thread ends
	defer runtime.UnlockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// slurm tests with a cluster.
func slurm(t *testing.T) {
	built.dir = os.Getenv(inside)
	built.whole = filepath.Join(built.dir, "whole")
	c := startCluster(t)
	atTheLimit := slurmLimit(t, c)
	t.Run("Array", func(t *testing.T) { slurmArray(t, c) })
	t.Run("Failure", func(t *testing.T) { slurmFailure(t, c) })
	t.Run("Scancel", func(t *testing.T) { slurmCancel(t, c, false) })
	t.Run("Interrupt", func(t *testing.T) { slurmCancel(t, c, true) })
	t.Run("Limit", atTheLimit)
}

// configuration is what Slurm needs to run without anything of the system's. The node claims more processors than
// there may be, so that all shards run at once.
const configuration = `ClusterName=test
SlurmctldHost=localhost
AuthType=auth/munge
AuthInfo=socket=%[1]s/munge.sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=%[1]s/state
SlurmdSpoolDir=%[1]s/spool
SlurmctldPidFile=%[1]s/slurmctld.pid
SlurmdPidFile=%[1]s/slurmd.pid
SlurmctldLogFile=%[1]s/slurmctld.log
SlurmdLogFile=%[1]s/slurmd.log
PluginDir=%[2]s/slurm-wlm
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=30
NodeName=localhost CPUs=32 RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
`

// cluster is a running one.
type cluster struct{ env []string }

func startCluster(t *testing.T) *cluster {
	t.Helper()
	root, err := bed.Find("slurm")
	if err != nil {
		t.Fatal(err)
	}
	network(t)
	dir, err := os.MkdirTemp("", "slurm") // a socket's path is short; munge wants its folder to be open to all
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, name := range []string{"slurmctld.log", "slurmd.log"} {
			if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil && t.Failed() {
				t.Logf("%s:\n%s", name, text)
			}
		}
		os.RemoveAll(dir)
	})
	libraries := folders(t, filepath.Join(root, "usr", "lib", "*-linux-gnu"))[0]
	config, key := filepath.Join(dir, "slurm.conf"), filepath.Join(dir, "munge.key")
	for _, err := range []error{
		os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "state"), 0o755), os.Mkdir(filepath.Join(dir, "spool"), 0o755),
		os.WriteFile(config, fmt.Appendf(nil, configuration, dir, libraries), 0o644),
		os.WriteFile(key, []byte(strings.Repeat("the test's own key", 8)), 0o400),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{env: environ(t, "SLURM_CONF="+config,
		"LD_LIBRARY_PATH="+libraries+":"+filepath.Join(libraries, "slurm-wlm"))}
	c.env = append(c.env, "PATH="+bin(t)+":"+filepath.Join(root, "usr", "bin")+":"+os.Getenv("PATH"))
	daemon := func(name string, args ...string) {
		command(t, c.env, dir, filepath.Join(root, "usr", "sbin", name), args...)
	}
	file := func(name string) string { return filepath.Join(dir, "munge."+name) }
	daemon("munged", "--foreground", "--key-file="+key, "--socket="+file("sock"), "--pid-file="+file("pid"),
		"--log-file="+file("log"), "--seed-file="+file("seed"))
	eventually(t, "munge has its socket", func() bool { _, err := os.Stat(file("sock")); return err == nil })
	daemon("slurmctld-wlm", "-D", "-c", "-f", config)
	daemon("slurmd-wlm", "-D", "-f", config, "-d", filepath.Join(root, "usr", "sbin", "slurmstepd-wlm"))
	eventually(t, "the node is idle", func() bool {
		out, _ := command(t, c.env, dir, "sinfo", "-h", "-o", "%t").end(t)
		return strings.TrimSpace(out) == "idle"
	})
	return c
}

// network turns the loopback interface on, and gives it another address: with none but 127.0.0.1, getaddrinfo(3) finds
// nothing with AI_ADDRCONFIG, which Slurm sets.
func network(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
	alias, err := unix.NewIfreq("lo:0")
	if err == nil {
		err = alias.SetInet4Addr([]byte{192, 0, 2, 1}) // RFC 5737: for documentation
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCSIFADDR, alias)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// submit starts configs/slurm/submit.sh for a suite; the reports come into a folder.
func (c *cluster) submit(t *testing.T, file, folder string, args ...string) *process {
	t.Helper()
	return command(t, c.env, t.TempDir(), configs(t, "slurm/submit.sh"), append([]string{file, folder}, args...)...)
}

// sharedFolder is what docs/ci.md has for the folder that all nodes share.
const sharedFolder = "/shared/results"

// submitted reads what docs/ci.md shows of submit.sh: flags of "ktstr-vmm suite", and what it prints.
func submitted(t *testing.T) (args []string, shown string) {
	t.Helper()
	page, err := os.ReadFile(configs(t, "../docs/ci.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```\n\\$ ktstr-vmm/configs/slurm/submit.sh suite.yaml " + sharedFolder +
		" ([^\n]*)\n(.*?)```\n").FindStringSubmatch(string(page))
	if block == nil {
		t.Fatalf("docs/ci.md does not show submit.sh with %s", sharedFolder)
	}
	return strings.Fields(block[1]), block[2]
}

// Shards as a job array, merged, are the suite. What took long before is divided evenly.
func slurmArray(t *testing.T, c *cluster) {
	folder := t.TempDir()
	out, code := c.submit(t, configs(t, "suite.yaml"), folder, "--durations", whole(t)).end(t)
	if code != 0 || !strings.Contains(out, "first: 8 passed in ") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	parts := folders(t, filepath.Join(folder, "*", "shard-*"))
	merged := folders(t, filepath.Join(folder, "*", "merged"))[0]
	durations := report(t, whole(t)).Durations()
	sum, longest, most := 0.0, 0.0, 0.0
	type span struct{ from, to time.Time }
	var spans []span
	for _, dir := range parts {
		r, load := report(t, dir), 0.0
		for _, x := range r.Runs {
			load += durations[x.Name]
			longest = max(longest, durations[x.Name])
		}
		sum, most = sum+load, max(most, load)
		spans = append(spans, span{r.StartedAt, r.StartedAt.Add(time.Duration(r.Duration * float64(time.Second)))})
	}
	if limit := max(longest, sum/shards+longest*(shards-1)/shards); most > limit {
		t.Errorf("a shard of %.2fs, want at most %.2fs of %.2fs", most, limit, sum)
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	together := 0 // if any two ran at once, so did two neighbours
	for i := 1; i < len(spans); i++ {
		if spans[i].from.Before(spans[i-1].to) {
			together++
		}
	}
	if together == 0 {
		t.Errorf("no two shards ran at once: %v", spans)
	}
	// By durations, a shard may have more runs than another one.
	all, got := endings(report(t, whole(t))), endings(report(t, merged))
	if all != got {
		t.Errorf("the suite is\n%sand its shards, merged, are\n%s", all, got)
	}
	// As the page has it.
	args, shown := submitted(t)
	again := filepath.Join(folder, "again")
	out, code = c.submit(t, configs(t, "suite.yaml"), again, args...).end(t)
	printed := regexp.MustCompile(`(job |/again/)\d+`).ReplaceAllString(out, "${1}1")
	printed = strings.ReplaceAll(printed, again, sharedFolder)
	if code != 0 || !guide.Shows(shown, printed) {
		t.Fatalf("exit code %d\n%sand the page shows\n%s", code, printed, shown)
	}
	equalsWhole(t, folders(t, filepath.Join(folder, "again", "*", "merged"))[0],
		folders(t, filepath.Join(folder, "again", "*", "shard-*"))...)
}

// A run that fails is the whole suite's failure, and submit.sh says which.
func slurmFailure(t *testing.T, c *cluster) {
	file := write(t, "suite.yaml", `name: mixed
defaults: {memory: 64M, shm-size: 64K, arch: x86_64}
runs:
- {name: good, scenario: ok}
- {name: bad, scenario: fail}
`)
	folder := t.TempDir()
	out, code := c.submit(t, file, folder).end(t)
	const want = "bad: expected exited with code 0, got exited with code 3"
	if code != 1 || !strings.Contains(out, want) || !strings.Contains(out, "mixed: 1 passed, 1 failed in ") {
		t.Errorf("exit code %d, no %q\n%s", code, want, out)
	}
}

// slurmLimit starts a suite that takes longer than its jobs may, and returns the rest of the test. Slurm looks at that
// twice a minute, and counts what comes before it looks again as over: the signal comes 30 to 60 s after the start.
func slurmLimit(t *testing.T, c *cluster) func(*testing.T) {
	limited := cluster{env: append(c.env[:len(c.env):len(c.env)], "SBATCH_TIMELIMIT=00:02:00")}
	folder := t.TempDir()
	s := limited.submit(t, write(t, "suite.yaml", hangs), folder)
	eventually(t, "all guests run", func() bool { return running(t, filepath.Join(folder, "*", "shard-*")) == shards })
	return func(t *testing.T) { endsEarly(t, s, folder, true) }
}

// scancel of the array, by hand or because submit.sh is ended, ends all guests in good order.
func slurmCancel(t *testing.T, c *cluster, bySignal bool) {
	folder := t.TempDir()
	s := c.submit(t, write(t, "suite.yaml", hangs), folder)
	eventually(t, "all guests run", func() bool { return running(t, filepath.Join(folder, "*", "shard-*")) == shards })
	if bySignal {
		if err := s.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	} else {
		entries := folders(t, filepath.Join(folder, "*", "shard-1"))
		if out, code := command(t, c.env, folder, "scancel", filepath.Base(filepath.Dir(entries[0]))).end(t); code != 0 {
			t.Fatalf("exit code %d\n%s", code, out)
		}
	}
	endsEarly(t, s, folder, true)
}

// endsEarly checks that all runs were interrupted, that there is a report of them, and that no process of theirs is
// left. Guests that ran had their grace.
func endsEarly(t *testing.T, s *process, folder string, ran bool) {
	t.Helper()
	out, code := s.end(t)
	if code != 143 || !strings.Contains(out, "ended early by SIGTERM") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	merged := folders(t, filepath.Join(folder, "*", "merged"))[0]
	if n := len(report(t, merged).Runs); n != shards {
		t.Errorf("%d runs, want %d", n, shards)
	}
	interrupted(t, merged, ran)
	for _, name := range folders(t, "/proc/[0-9]*/cmdline") {
		if args, _ := os.ReadFile(name); strings.Contains(string(args), folder+"/") {
			t.Errorf("%s is left: %q", name, args)
		}
	}
}
