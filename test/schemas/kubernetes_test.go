// Package schemas judges the files in configs that other programs read by what these programs know of them. It is a
// module of its own, because what knows it is large.
package schemas

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// config reads a file of configs.
func config(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "configs", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// objects decodes Kubernetes's objects. A key that their types do not have is an error, and so is one that is there
// twice.
func objects(text string) (all []runtime.Object, err error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(batch.AddToScheme(scheme), core.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		o, _, err := decoder.Decode(bytes.TrimSpace(document), nil, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
}

// Kubernetes knows every key, and the Jobs are what they are meant to be.
func TestKubernetes(t *testing.T) {
	text := strings.ReplaceAll(config(t, "k8s/jobs.yaml")+"\n---\n"+config(t, "k8s/storage.yaml"), "@RUN@", "7f3a9c2-1")
	all, err := objects(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 {
		t.Fatalf("%d objects, want two Jobs and a claim", len(all))
	}
	shards, verdict, claim := all[0].(*batch.Job), all[1].(*batch.Job), all[2].(*core.PersistentVolumeClaim)
	for _, job := range []*batch.Job{shards, verdict} {
		checkJob(t, job, claim.Name)
	}
	if s := shards.Spec; *s.CompletionMode != batch.IndexedCompletion || *s.Completions != *s.Parallelism ||
		*s.BackoffLimitPerIndex != 0 || s.BackoffLimit != nil || s.PodFailurePolicy != nil {
		t.Errorf("shards are run in another way: %+v", s)
	}
	if s := verdict.Spec; *s.BackoffLimit != 0 || *s.ActiveDeadlineSeconds <= *shards.Spec.ActiveDeadlineSeconds {
		t.Errorf("the verdict comes in another way: %+v", s)
	}
	kvm := shards.Spec.Template.Spec.Containers[0].Resources.Limits["squat.ai/kvm"]
	if kvm.Value() != 1 {
		t.Errorf("%v of /dev/kvm", kvm)
	}
}

// What docs/ci.md makes of the file for one run is what kubectl takes.
func TestKubernetesGuide(t *testing.T) {
	page := config(t, "../docs/ci.md")
	line := regexp.MustCompile(`(?m)^(sed .*) \| kubectl create -f -$`).FindStringSubmatch(page)
	name := regexp.MustCompile(`(?m)^run=.*$`).FindString(page)
	if line == nil || name == "" {
		t.Fatal("the page creates no Jobs")
	}
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	if err := os.Symlink(repository, filepath.Join(home, "ktstr-vmm")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-euc", name+"\n"+line[1])
	cmd.Dir = home
	text, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all, err := objects(string(text))
	if err != nil || len(all) != 2 || strings.Contains(string(text), "@RUN@") {
		t.Fatalf("%d objects, %v\n%s", len(all), err, text)
	}
	for _, o := range all {
		job := o.(*batch.Job)
		if !strings.HasSuffix(job.Name, "-build-42") || validation.IsDNS1123Label(job.Name) != nil {
			t.Errorf("%s is not of the run", job.Name)
		}
	}
}

// checkJob checks what a cluster with the restricted Pod Security Standard asks of a Job, and what it is given.
func checkJob(t *testing.T, job *batch.Job, claim string) {
	t.Helper()
	pod := job.Spec.Template.Spec
	if bad := validation.IsDNS1123Label(job.Name); bad != nil {
		t.Errorf("name %q: %v", job.Name, bad)
	}
	if len(validation.IsDNS1123Label(strings.ReplaceAll(job.Name, "7f3a9c2-1", "@RUN@"))) == 0 {
		t.Errorf("%s: without a name for the run it would be taken", job.Name)
	}
	s := pod.SecurityContext
	if pod.RestartPolicy != core.RestartPolicyNever || !*s.RunAsNonRoot || *s.RunAsUser == 0 || *s.RunAsGroup == 0 ||
		s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault || *pod.AutomountServiceAccountToken ||
		pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Errorf("%s: a pod with %+v, %+v", job.Name, pod, s)
	}
	for _, c := range pod.Containers {
		s := c.SecurityContext
		if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || s.Privileged != nil ||
			len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" || s.Capabilities.Add != nil {
			t.Errorf("%s: a container with %+v", job.Name, s)
		}
		for _, e := range c.Env {
			if e.Name == "SHARDS" && e.Value != "4" {
				t.Errorf("%s: %s shards, want 4", job.Name, e.Value)
			}
		}
	}
	for _, v := range pod.Volumes {
		switch {
		case v.HostPath != nil:
			t.Errorf("%s: the node's %s", job.Name, v.HostPath.Path)
		case v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName != claim:
			t.Errorf("%s: claim %q, want %q", job.Name, v.PersistentVolumeClaim.ClaimName, claim)
		}
	}
	if job.Namespace != "" {
		t.Errorf("%s: in the namespace %q, which is for the user to choose", job.Name, job.Namespace)
	}
}

// What Kubernetes would pass over or refuse is seen.
func TestKubernetesIsStrict(t *testing.T) {
	text := config(t, "k8s/jobs.yaml")
	for old, wrong := range map[string]string{
		"backoffLimitPerIndex: 0":  "backofLimitPerIndex: 0",
		"completions: 4":           "completions: four",
		"restartPolicy: Never":     "restartPolicy: Never\n      restartPolicy: Never",
		"apiVersion: batch/v1":     "apiVersion: batch/v2",
		"readOnlyRootFilesystem: ": "readonlyRootFilesystem: ",
	} {
		bad := strings.Replace(text, old, wrong, 1)
		if bad == text {
			t.Errorf("there is no %q", old)
		}
		if _, err := objects(bad); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}
