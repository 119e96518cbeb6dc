package schemas

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	batch "k8s.io/api/batch/v1"
)

// shellcheck returns shellcheck's path.
func shellcheck(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skipf("this test needs shellcheck: %v", err)
	}
	return path
}

// shellcheck has nothing to say about the scripts of Slurm's and Kubernetes's jobs.
func TestShell(t *testing.T) {
	check := func(name string, c *exec.Cmd) {
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	files, err := filepath.Glob("../../configs/slurm/*")
	if err != nil || len(files) != 3 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		check(file, exec.Command(shellcheck(t), file))
	}
	all, err := objects(config(t, "k8s/jobs.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		job := o.(*batch.Job)
		for _, c := range job.Spec.Template.Spec.Containers {
			if strings.Join(c.Command, " ") != "sh -eu -c" || len(c.Args) != 1 {
				t.Fatalf("%s: %q, %q", job.Name, c.Command, c.Args)
			}
			cmd := exec.Command(shellcheck(t), "--shell=sh", "-")
			cmd.Stdin = strings.NewReader(c.Args[0])
			check(job.Name, cmd)
		}
	}
}
