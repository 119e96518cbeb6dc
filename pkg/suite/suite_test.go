package suite_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// Each run is in one shard, whatever is known of durations, and where all is known no shard has more than a run more
// to do than another.
func TestShards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var runs []*suite.Run
		durations := map[string]float64{}
		n := rapid.IntRange(0, 40).Draw(t, "runs")
		known := rapid.Bool().Draw(t, "all known")
		longest := 0.0
		for i := range n {
			x := &suite.Run{Name: fmt.Sprint("run ", i)}
			runs = append(runs, x)
			if known || rapid.Bool().Draw(t, "known") {
				d := rapid.Float64Range(0.1, 100).Draw(t, "seconds")
				durations[x.Name] = d
				longest = max(longest, d)
			}
		}
		count := rapid.IntRange(1, 9).Draw(t, "shards")
		seen := map[string]int{}
		var loads []float64
		for i := 1; i <= count; i++ {
			load := 0.0
			for _, x := range (suite.Shard{Index: i, Count: count}).Of(runs, durations) {
				seen[x.Name]++
				load += durations[x.Name]
			}
			loads = append(loads, load)
		}
		for _, x := range runs {
			if seen[x.Name] != 1 {
				t.Fatalf("%s is in %d shards", x.Name, seen[x.Name])
			}
		}
		if known && slices.Max(loads)-slices.Min(loads) > longest+1e-6 {
			t.Fatalf("%v, the longest run takes %v", loads, longest)
		}
	})
}

// What shard a run is in does not depend on the order of the file.
func TestShardsAreStable(t *testing.T) {
	var runs []*suite.Run
	for i := range 20 {
		runs = append(runs, &suite.Run{Name: fmt.Sprint("run ", i)})
	}
	names := func(runs []*suite.Run) (all []string) {
		for _, x := range (suite.Shard{Index: 2, Count: 3}).Of(runs, map[string]float64{"run 3": 7, "run 4": 2}) {
			all = append(all, x.Name)
		}
		slices.Sort(all)
		return all
	}
	before := names(runs)
	slices.Reverse(runs)
	if diff := cmp.Diff(before, names(runs)); diff != "" || len(before) == 0 {
		t.Error(before, diff)
	}
}

func TestFilter(t *testing.T) {
	runs := []*suite.Run{{Name: "one", Labels: []string{"slow"}}, {Name: "two", Labels: []string{"fast", "x"}},
		{Name: "x"}}
	for pattern, want := range map[string]int{"": 3, "^x$": 2, "slow|fast": 2, "none": 0} {
		if got := suite.Filter(runs, regexp.MustCompile(pattern)); len(got) != want {
			t.Errorf("%q: %d runs, want %d", pattern, len(got), want)
		}
	}
}

func code(n int) *int { return &n }

// result is a run with what a comparison looks at.
func result(name string, status suite.Status, seconds float64, iterations uint64, ms uint32) *suite.Result {
	return &suite.Result{Name: name, Status: status, Folder: "runs/" + name,
		Expect: &suite.Expect{Outcome: run.Exited, ExitCode: code(0)},
		Attempt: suite.Attempt{Duration: seconds, Outcome: run.Exited, ExitCode: code(0), Reason: "because",
			Iterations: iterations, IterationsMS: ms},
		Earlier: make([]suite.Attempt, map[suite.Status]int{suite.Flaky: 1}[status])}
}

func TestCompare(t *testing.T) {
	old := &suite.Report{Name: "s", Duration: 10, Runs: []*suite.Result{
		result("same", suite.Passed, 1, 1000, 100),
		result("breaks", suite.Passed, 1, 0, 0),
		result("is killed", suite.Flaky, 1, 0, 0),
		result("stays broken", suite.Failed, 1, 0, 0),
		result("is mended", suite.Lost, 1, 0, 0),
		result("flakes", suite.Passed, 1, 0, 0),
		result("takes longer", suite.Passed, 1, 0, 0),
		result("takes a little longer", suite.Passed, 0.1, 0, 0),
		result("does less", suite.Passed, 1, 1000, 100),
		result("goes", suite.Passed, 1, 0, 0),
		result("is skipped", suite.Passed, 1, 0, 0),
	}}
	now := &suite.Report{Name: "s", Duration: 12, Runs: []*suite.Result{
		result("same", suite.Passed, 1.4, 1400, 200),
		result("breaks", suite.Failed, 9, 0, 0),
		result("is killed", suite.Lost, 1, 0, 0),
		result("stays broken", suite.Failed, 1, 0, 0),
		result("is mended", suite.Passed, 1, 0, 0),
		result("flakes", suite.Flaky, 1, 0, 0),
		result("takes longer", suite.Passed, 2, 0, 0),
		result("takes a little longer", suite.Passed, 0.4, 0, 0),
		result("does less", suite.Passed, 1, 600, 100),
		result("is skipped", suite.Skipped, 0, 0, 0),
		result("comes", suite.Passed, 1, 0, 0),
		result("comes broken", suite.Failed, 1, 0, 0),
	}}
	c := suite.Compare(old, now, 1.5)
	names := func(changes []suite.Change) (all []string) {
		for _, x := range changes {
			all = append(all, x.Name)
		}
		return all
	}
	want := map[string][]string{"failing": {"breaks", "is killed", "comes broken"}, "still": {"stays broken"},
		"fixed": {"is mended"}, "flaky": {"flakes"}, "missing": {"goes"}, "skipped": {"is skipped"},
		"added": {"comes", "comes broken"}}
	got := map[string][]string{"failing": names(c.Failing), "still": names(c.Still), "fixed": names(c.Fixed),
		"flaky": names(c.Flaky), "missing": c.Missing, "skipped": names(c.Skipped), "added": c.Added}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	slower := []suite.Slower{{Name: "same", What: suite.SlowerIterations, Old: 10000, New: 7000},
		{Name: "takes longer", What: suite.SlowerDuration, Old: 1, New: 2},
		{Name: "does less", What: suite.SlowerIterations, Old: 10000, New: 6000}}
	if diff := cmp.Diff(slower[1:], c.Slower); diff != "" {
		t.Error(diff)
	}
	if !c.Worse() || suite.Compare(old, old, 1.5).Worse() {
		t.Errorf("%v is worse", c)
	}
	if diff := cmp.Diff(slower, suite.Compare(old, now, 1.2).Slower); diff != "" {
		t.Error(diff)
	}
	var text, markdown, js bytes.Buffer
	if err := errors.Join(c.Text(&text), c.Markdown(&markdown), c.JSON(&js)); err != nil {
		t.Fatal(err)
	}
	const breaks = "newly failing:\n  breaks: expected exited with code 0, got exited with code 0: because\n"
	if !strings.Contains(text.String(), breaks) ||
		!strings.Contains(markdown.String(), "#### slower\n\n- takes longer: duration seconds was 1, is 2\n") {
		t.Errorf("%s\n%s", text.Bytes(), markdown.Bytes())
	}
	var back suite.Comparison
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || len(back.Failing) != 3 {
		t.Errorf("%v: %s", err, js.Bytes())
	}
}

// What a guest wrote is shown as what it is, in each form.
func TestHostileTexts(t *testing.T) {
	hostile := "``` | <script>alert(1)</script> \x1b[31m ]]> & \x00 \u202e x"
	x := result("no "+hostile, suite.Failed, 1, 0, 0)
	x.Reason, x.Tail = hostile, []string{"```", hostile}
	r := &suite.Report{Name: "s", Runs: []*suite.Result{x}}
	var text, markdown, junit bytes.Buffer
	if err := errors.Join(r.Text(&text), r.Markdown(&markdown), r.JUnit(&junit)); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{text.String(), markdown.String()} {
		if strings.ContainsAny(out, "\x00\x1b\u202e") {
			t.Errorf("%q", out)
		}
	}
	table, tail, ok := strings.Cut(markdown.String(), "````text\n")
	if !ok || !strings.HasSuffix(tail, "\n````\n") || regexp.MustCompile("[^\\\\]<|[^\\\\]`").MatchString(table) {
		t.Errorf("%s", markdown.Bytes())
	}
	if strings.Count(table, " | ") != strings.Count(table, "\n|")+3 && !strings.Contains(table, `\|`) {
		t.Errorf("%s", table)
	}
	d := xml.NewDecoder(&junit)
	for {
		if token, err := d.Token(); token == nil {
			if err != nil && err.Error() != "EOF" {
				t.Error(err)
			}
			break
		}
	}
}

// merged merges shards into a new folder.
func merged(t *testing.T, shards ...string) (dir string, r *suite.Report, err error) {
	t.Helper()
	m, err := suite.NewMerger(shards)
	if err != nil {
		return "", nil, err
	}
	results, err := suite.OpenResults(filepath.Join(t.TempDir(), "merged"))
	if err != nil {
		t.Fatal(err)
	}
	defer results.Close()
	r, err = m.Write(results)
	return results.Dir, r, err
}

// A shard's folder may come from anywhere: nothing is taken that its links or paths lead to, and a run that is said to
// have passed has files.
func TestMergeTakesNothingFromOutside(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secrets", "secret")
	shard := filepath.Join(dir, "shard")
	folder := filepath.Join(shard, "runs", "a")
	r := &suite.Report{Schema: 1, Name: "s", Names: []string{"a"}}
	r.Runs = []*suite.Result{result("a", suite.Passed, 1, 0, 0)}
	link := func(err error) error { return errors.Join(err, os.Symlink(secret, filepath.Join(folder, "link"))) }
	for name, c := range map[string]struct {
		make func() error
		want error
	}{
		"a link in the folder":     {func() error { return link(os.MkdirAll(folder, 0o755)) }, nil},
		"a folder that is a link":  {func() error { return os.Symlink(filepath.Dir(secret), folder) }, suite.ErrMerge},
		"a folder outside":         {func() error { r.Runs[0].Folder = "../secrets"; return nil }, suite.ErrReport},
		"a folder that is missing": {func() error { r.Runs[0].Folder = "runs/b"; return nil }, suite.ErrMerge},
	} {
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Dir(secret), 0o755), os.WriteFile(secret, nil, 0o600),
			os.MkdirAll(filepath.Dir(folder), 0o755)); err != nil {
			t.Fatal(err)
		}
		r.Runs[0].Folder = "runs/a"
		if err := errors.Join(c.make(), r.Write(shard)); err != nil {
			t.Fatal(err)
		}
		into, _, err := merged(t, shard)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		for _, file := range []string{"link", "secret"} {
			if _, err := os.Lstat(filepath.Join(into, "runs", "a", file)); err == nil {
				t.Errorf("%s: %s was taken", name, file)
			}
		}
	}
}

// What is refused as a results folder is left as it is.
func TestResultsFolders(t *testing.T) {
	good := &suite.Report{Schema: 1, Name: "s"}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a suite's":            {nil, ""},
		"with another file":    {map[string]string{"main.c": ""}, `"main.c", which is not of a suite`},
		"with another report":  {map[string]string{"suite.json": "{}"}, "schema 0"},
		"with a file for runs": {map[string]string{"runs": ""}, `"runs", which is not of a suite`},
	} {
		dir := t.TempDir()
		err := errors.Join(good.Write(dir), os.MkdirAll(filepath.Join(dir, "runs", "kept"), 0o755))
		if _, ok := c.files["runs"]; ok {
			err = os.RemoveAll(filepath.Join(dir, "runs"))
		}
		for file, text := range c.files {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		before, _ := filepath.Glob(filepath.Join(dir, "*"))
		r, err := suite.OpenResults(dir)
		if c.want == "" {
			if err != nil {
				t.Fatal(err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("%s: %v is left", name, entries)
			}
			if _, err := suite.OpenResults(dir); !errors.Is(err, suite.ErrDir) || !strings.Contains(err.Error(), "in use") {
				t.Errorf("%s: twice at once: %v", name, err)
			}
			r.Close()
			continue
		}
		after, _ := filepath.Glob(filepath.Join(dir, "*"))
		if !errors.Is(err, suite.ErrDir) || !strings.Contains(err.Error(), c.want) || !slices.Equal(before, after) {
			t.Errorf("%s: %v, want %s; %q, was %q", name, err, c.want, after, before)
		}
	}
	fifo := filepath.Join(t.TempDir(), "suite.json")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := suite.ReadReport(fifo); !errors.Is(err, suite.ErrReport) {
		t.Errorf("a FIFO: %v", err)
	}
}

// A report with an object for every three bytes takes hardly more memory than its text.
func TestReportOfManyObjects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "suite.json")
	text := `{"schema": 1, "name": "\"{", "runs": [{"status": "flaky", "earlier": [` + strings.Repeat("{},", 1<<20) +
		`{}]}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := suite.ReadReport(path)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, suite.ErrReport) || !strings.Contains(err.Error(), "it has more than ") {
		t.Error(err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 8*uint64(len(text)) {
		t.Errorf("%d bytes of memory for a report of %d", took, len(text))
	}
}

func TestReportsThatAreNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "suite.json")
	for _, text := range []string{"", "{", "[]", `{"schema": 2, "name": "s"}`, `{"schema": 1}`,
		`{"schema": 1, "name": "s", "runs": [null]}`, `{"schema": 1, "name": "s", "runs": [{"status": "fine"}]}`,
		`{"schema": 1, "name": "s", "runs": [{"status": "passed", "folder": "/etc"}]}`,
		`{"schema": 1, "name": "s", "runs": [{"status": "flaky"}]}`,
		`{"schema": 1, "name": "s", "runs": [{"status": "passed"}, {"status": "passed"}]}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := suite.ReadReport(path); !errors.Is(err, suite.ErrReport) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
