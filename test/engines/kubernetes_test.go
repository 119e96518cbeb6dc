package engines

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
)

// container is a container of a Job, as far as it is tested here.
type container struct {
	Command, Args   []string
	Env             []struct{ Name, Value string }
	SecurityContext struct {
		ReadOnlyRootFilesystem bool `yaml:"readOnlyRootFilesystem"`
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

// pods are what the Jobs make, with their volumes as folders.
type pods struct {
	shard, verdict container
	volumes        map[string]string
	user           int
	run            string
}

// jobs reads the Jobs, for a suite and a run with this name.
func jobs(t *testing.T, suite, run string) *pods {
	t.Helper()
	type job struct {
		Spec struct {
			Template struct {
				Spec struct {
					SecurityContext struct {
						RunAsUser int `yaml:"runAsUser"`
					} `yaml:"securityContext"`
					Containers []container
				}
			}
		}
	}
	all := load[job](t, configs(t, "k8s/jobs.yaml"))
	shard, verdict := all[0].Spec.Template.Spec, all[1].Spec.Template.Spec
	text, err := os.ReadFile(suite)
	if err != nil {
		t.Fatal(err)
	}
	volumes := map[string]string{"suite": filepath.Dir(write(t, "suite.yaml", string(text))), "results": t.TempDir(),
		"tmp": t.TempDir()}
	return &pods{shard: shard.Containers[0], verdict: verdict.Containers[0], volumes: volumes,
		user: shard.SecurityContext.RunAsUser, run: run}
}

// start starts a container in what a pod gives it: its volumes, and nothing else that can be written to; another user
// without capabilities; processes of its own, of which it is the first.
func (p *pods) start(t *testing.T, c container, more ...string) *process {
	t.Helper()
	args := []string{"--die-with-parent", "--unshare-all", "--as-pid-1", "--cap-drop", "ALL", "--uid", fmt.Sprint(p.user),
		"--gid", fmt.Sprint(p.user), "--clearenv", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc",
		"--proc", "/proc", "--dev", "/dev", "--dev-bind-try", "/dev/kvm", "/dev/kvm",
		"--ro-bind", bin(t), "/usr/local/bin", "--setenv", "PATH", "/usr/local/bin:/usr/bin"}
	for _, name := range []string{"/bin", "/lib", "/lib64"} {
		args = append(args, "--symlink", "usr"+name, name)
	}
	for _, m := range c.VolumeMounts {
		bind := map[bool]string{false: "--bind", true: "--ro-bind"}[m.ReadOnly]
		args = append(args, bind, p.volumes[m.Name], m.MountPath)
	}
	if c.SecurityContext.ReadOnlyRootFilesystem {
		args = append(args, "--remount-ro", "/")
	}
	for _, e := range c.Env {
		args = append(args, "--setenv", e.Name, strings.ReplaceAll(e.Value, "@RUN@", p.run))
	}
	for _, v := range more {
		name, value, _ := strings.Cut(v, "=")
		args = append(args, "--setenv", name, value)
	}
	args = append(append(args, c.Command...), c.Args...)
	return command(t, os.Environ(), "/", testenv.Tool(t, "bwrap"), args...)
}

// shards starts the pods of these indexes.
func (p *pods) shards(t *testing.T, indexes ...int) (all []*process) {
	t.Helper()
	for _, i := range indexes {
		all = append(all, p.start(t, p.shard, fmt.Sprintf("JOB_COMPLETION_INDEX=%d", i)))
	}
	return all
}

// The pods of the shards and of the verdict, which are started at once, are the suite.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	p := jobs(t, configs(t, "suite.yaml"), "7f3a9c2-1")
	verdict := p.start(t, p.verdict)
	for _, s := range p.shards(t, 0, 1, 2, 3) {
		if out, code := s.end(t); code != 0 {
			t.Errorf("exit code %d\n%s", code, out)
		}
	}
	if out, code := verdict.end(t); code != 0 || !strings.HasPrefix(out, "first: 8 passed in ") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	run := filepath.Join(p.volumes["results"], p.run)
	equalsWhole(t, filepath.Join(run, "merged"), folders(t, filepath.Join(run, "shard-?"))...)

	// Another run with this name does not run a shard over its reports, and its verdict is not that of the old ones: not
	// even if there was none the first time.
	verdict = p.start(t, p.verdict)
	for _, s := range p.shards(t, 0, 1, 2, 3) {
		if out, code := s.end(t); code != 125 || !strings.Contains(out, "/shard-") {
			t.Errorf("exit code %d\n%s", code, out)
		}
	}
	refused := func(verdict *process) {
		t.Helper()
		if out, code := verdict.end(t); code != 125 || !strings.HasSuffix(out, "there was a run "+p.run+" already\n") {
			t.Errorf("exit code %d\n%s", code, out)
		}
	}
	refused(verdict)
	if err := os.Remove(filepath.Join(run, "verdict")); err != nil {
		t.Fatal(err)
	}
	refused(p.start(t, p.verdict))
}

// A shard that never says that it is done is waited for, and its runs are lost; one that was ended has its report.
func TestKubernetesLost(t *testing.T) {
	t.Parallel()
	p := jobs(t, write(t, "suite.yaml", hangs), "7f3a9c2-2")
	all := p.shards(t, 0, 1, 2)
	results := filepath.Join(p.volumes["results"], p.run, "shard-*")
	eventually(t, "all guests run", func() bool { return running(t, results) == len(all) })
	for _, s := range all {
		for _, first := range vmtest.Children(t, s.Process.Pid) { // bwrap has no other child
			if err := syscall.Kill(first, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		if out, code := s.end(t); code != 143 {
			t.Errorf("exit code %d\n%s", code, out)
		}
	}
	for _, dir := range folders(t, results+"[0-9]") {
		interrupted(t, dir, true)
	}
	out, code := p.start(t, p.verdict, "WAIT=2").end(t)
	const want = "not all shards are done after 2 seconds\n"
	if code != 143 || !strings.HasPrefix(out, want) || !strings.Contains(out, "hangs: 1 lost, 3 skipped in ") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
