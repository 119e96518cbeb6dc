package page

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// linux is a report of a run in a Linux guest.
func linux(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "test", "browser", "testdata", "linux.json"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// forms are a page in all of them.
func forms(t testing.TB, p *Page) string {
	t.Helper()
	var b bytes.Buffer
	if err := errors.Join(p.HTML(&b, "test"), p.Text(&b), p.Markdown(&b)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What is in a folder is found, and what is no report there is said by name.
func TestFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.json"), string(linux(t)))
	write(t, filepath.Join(dir, "b", "report.json"), strings.Replace(string(linux(t)), "./work.sh", "./other", 1))
	write(t, filepath.Join(dir, "c", "suite.json"), `{"schema": 1, "name": "c", "counts": {}, "runs": [
		{"name": "lost", "status": "lost", "folder": "runs/lost", "reason": "it was killed"}]}`)
	write(t, filepath.Join(dir, "d.json"), `{"schema": 7}`)
	write(t, filepath.Join(dir, "e.txt"), "no report")
	p, err := Read([]string{dir}, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Groups) != 2 || len(p.Groups[0].Runs) != 1 || len(p.Groups[1].Runs) != 2 {
		t.Fatalf("%+v", p.Groups)
	}
	if len(p.Problems) != 1 || !strings.HasPrefix(p.Problems[0], filepath.Join(dir, "d.json")+": ") {
		t.Errorf("%q", p.Problems)
	}
	if text := forms(t, p); !strings.Contains(text, "./other") || !strings.Contains(text, "it was killed") {
		t.Errorf("%s", text)
	}
}

// A results folder that somebody sent has no way to another file of this host.
func TestLinkOutOfFolder(t *testing.T) {
	secret := write(t, filepath.Join(t.TempDir(), "secret"), "the secret\n")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "suite.json"), `{"schema": 1, "name": "s", "counts": {}, "runs": [
		{"name": "r", "status": "failed", "folder": "runs/r", "reason": "?"}]}`)
	write(t, filepath.Join(dir, "runs", "r", "report.json"), string(linux(t)))
	for _, name := range []string{"stdout.log", "stderr.log"} {
		if err := os.Symlink(secret, filepath.Join(dir, "runs", "r", name)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Read([]string{dir}, "")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(forms(t, p), "the secret") {
		t.Error("a link led out of the folder")
	}
}

func TestNoReport(t *testing.T) {
	for _, text := range []string{"", "{}", "[]", "null", `{"schema": 1, "id": "x"}`, `{"schema": 1, "runs": 3}`,
		`{"schema": 1, "id": "x", "outcome": 3}`, string(linux(t)[:3000]), strings.Repeat("[", 1<<20)} {
		path := write(t, filepath.Join(t.TempDir(), "x.json"), text)
		if _, err := Read([]string{path}, ""); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	if _, err := Read([]string{"/dev/zero"}, ""); !errors.Is(err, ErrReport) {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "large.json")
	if err := os.Truncate(write(t, path, `{"id": "`), 65<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := Read([]string{path}, ""); !errors.Is(err, ErrReport) {
		t.Error(err)
	}
}

// A report that is as large as may be makes a page that is not, and that says what it leaves out.
func TestBounds(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"schema": 1, "outcome": "exited", "duration_seconds": 1, "console_tail": "`)
	b.WriteString(strings.Repeat(`line\n`, 1<<20) + `the end", "stimuli": [{"at_seconds": 0.5}`)
	b.WriteString(strings.Repeat(`,{"at_seconds": 0.7}`, 70000) + `], "results": [{"name": "first", "passed": false}`)
	b.WriteString(strings.Repeat(`,{"name": "n", "passed": true}`, 70000) + `], "events": [{"kind": "x"}`)
	b.WriteString(strings.Repeat(`,{"at_seconds": 1e300, "kind": "x"}`, 5000) + `]}`)
	p, err := Read([]string{write(t, filepath.Join(t.TempDir(), "x.json"), b.String())}, "")
	if err != nil {
		t.Fatal(err)
	}
	text := forms(t, p)
	if len(text) > 1<<20 {
		t.Errorf("the forms have %d bytes", len(text))
	}
	for _, want := range []string{"the end", "the last 65536 of 5242887 bytes",
		"the first 500 of 70001; the report has more", "65535 passed, 1 failed of the first 65536"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q", want)
		}
	}
}

// Lists of lists with an element for every three bytes make no page that takes much more memory than the report.
func TestListsInLists(t *testing.T) {
	looks := strings.Repeat(`{"cpus": [`+strings.Repeat("{},", 60000)+`{}]},`, 20)
	text := `{"schema": 1, "outcome": "exited", "cpus": {"looks": [` + looks + `{}]}}`
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, err := decodeSource(strings.NewReader(text))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > int64(len(text)) {
		t.Errorf("%d bytes are kept of a report of %d", kept, len(text))
	}
	tables := s.looks()
	if len(tables) != maxLooks || tables[0].Note != "the first 500 of 60001; the report has more" {
		t.Errorf("%d tables, the first one with the note %q", len(tables), tables[0].Note)
	}
}

// What a suite's file says of itself is not believed where its runs say otherwise.
func TestSuiteAgainstItself(t *testing.T) {
	p, err := Read([]string{write(t, filepath.Join(t.TempDir(), "suite.json"), `{"schema": 1, "name": "s",
		"counts": {"passed": 99}, "interrupted": "SIGTERM", "runs": [
		{"name": "a", "status": "passed"}, {"name": "b", "status": "skipped"}]}`)}, "")
	if err != nil {
		t.Fatal(err)
	}
	text := forms(t, p)
	if !strings.Contains(text, "s: 1 passed, 1 skipped in 0.00s; ended early by SIGTERM") {
		t.Error("it counts wrongly")
	}
	if !strings.Contains(text, "<title>✗ s</title>") {
		t.Error("a suite that was ended early is no good one")
	}
}

// Runs of no suite are told apart by their files, and those that did well come after those of a suite that failed.
func TestRunsOfFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range maxSections + 1 {
		write(t, filepath.Join(dir, fmt.Sprintf("%d.json", i)), `{"schema": 1, "name": "x", "outcome": "exited"}`)
	}
	p, err := Read([]string{dir}, "")
	if err != nil {
		t.Fatal(err)
	}
	page := forms(t, p)
	for _, want := range []string{"<title>✓ Runs</title>", filepath.Join(dir, "200.json"), "and 151 runs more"} {
		if !strings.Contains(page, want) {
			t.Errorf("there is no %q", want)
		}
	}
	write(t, filepath.Join(dir, "z", "suite.json"), `{"schema": 1, "name": "z", "counts": {}, "runs": [
		{"name": "lost", "status": "lost", "reason": "it was killed"}]}`)
	if p, err = Read([]string{dir}, ""); err != nil {
		t.Fatal(err)
	}
	if v := p.Groups[0].Runs[0].Section; v == nil || v.Name != "lost" || v.Anchor != "run-1" {
		t.Errorf("%+v", v)
	}
}

// Of very many files that can't be read the first are named.
func TestManyProblems(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "good.json"), string(linux(t)))
	for i := range maxProblems + 7 {
		write(t, filepath.Join(dir, fmt.Sprintf("%03d.json", i)), "{}")
	}
	p, err := Read([]string{dir}, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Problems) != maxProblems || strings.Count(forms(t, p), "and 7 more") != 3 {
		t.Errorf("%d problems are named", len(p.Problems))
	}
}

// Of objects with very many keys so many are read that what is made of them takes no time.
func TestManyKeys(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"schema": 1, "outcome": "exited", "omitted": null, "ring": {"by_type": {"EXIT": 1`)
	for i := range 100000 {
		fmt.Fprintf(&b, `,"%d":1`, i)
	}
	b.WriteString(`}}}`)
	s, err := decodeSource(strings.NewReader(b.String()))
	if err != nil || len(s.Ring.ByType) != maxKeys || s.Ring.ByType["EXIT"] != 1 {
		t.Fatalf("%v, %d keys", err, len(s.Ring.ByType))
	}
	for _, object := range []string{`3`, `[]`, `{"EXIT": "x"}`, `{"EXIT": -1}`} {
		text := `{"schema": 1, "outcome": "exited", "ring": {"by_type": ` + object + `}}`
		if _, err := decodeSource(strings.NewReader(text)); !errors.Is(err, ErrReport) {
			t.Errorf("%s: %v", object, err)
		}
	}
}

// The table has what a suite can have, and the lists at the top the first of very many.
func TestManyRuns(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"schema": 1, "name": "s", "counts": {}, "runs": [`)
	for i := range 10050 {
		fmt.Fprintf(&b, `{"name": "run %d", "status": "flaky", "reason": %q, "earlier": [{"reason": "x"}]},`, i,
			strings.Repeat("long ", 1000))
	}
	b.WriteString(`{"name": "last", "status": "failed", "reason": "it comes first"}]}`)
	p, err := Read([]string{write(t, filepath.Join(t.TempDir(), "suite.json"), b.String())}, "")
	if err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := p.HTML(&page, "test"); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	if len(text) > 16<<20 {
		t.Errorf("the page has %d bytes", len(text))
	}
	if !strings.Contains(text, `<a href="#run-1">last</a>`) {
		t.Error("what is worst is not first")
	}
	for _, want := range []string{"Flaky: 10050", "10050 flaky", "and 9950 more", "and 51 runs that are no worse",
		"9800 runs have a line"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q", want)
		}
	}
}

// A shell makes of a command line the words that it was made of, and a terminal is shown nothing that it would act on.
func TestCommand(t *testing.T) {
	args := []string{"plain-1.0/x=y", "", "two words", "it's", `back\slash`, "$HOME `id` $(id)", "line\nend",
		"\x1b[31m", "\xff\xfe", "\u202etxt", "ü", "*", "~", "=x", "#", "a;b&c|d"}
	i := &invocation{Args: list[string]{All: []string{"printf", "%s\\0"}}, Dir: "/", Env: dict[string]{
		"KTSTR_VMM_CPUS": "1; id", "LD_PRELOAD": "x", "KTSTR_VMM_$(id)": "x"}}
	line := strings.Join(i.command(append([]string{"%s\\0"}, args...)...), " ")
	if strings.ContainsAny(line, "\x1b\n\u202e") || strings.Contains(line, "LD_PRELOAD") {
		t.Errorf("%q", line)
	}
	out, err := exec.Command("bash", "-c", line).CombinedOutput()
	if want := strings.Join(args, "\x00") + "\x00"; err != nil || string(out) != want {
		t.Errorf("%v, %q, want %q, of %s", err, out, want, line)
	}
	if got := i.command(strings.Repeat("x", maxCommand)); got != nil {
		t.Errorf("a command of %d words", len(got))
	}
}

// Text and Markdown show a guest's words as they are, and do nothing that these say.
func TestWords(t *testing.T) {
	var v map[string]any
	if err := json.Unmarshal(linux(t), &v); err != nil {
		t.Fatal(err)
	}
	attack := "<b>x</b> | [y](z) ```\n# head\x1b[31m\x07 @team\n::add-mask::e"
	v["name"], v["reason"], v["console_tail"] = attack, attack, attack
	v["results"] = []any{map[string]any{"name": attack, "passed": false}, attack}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Read([]string{write(t, filepath.Join(t.TempDir(), "x.json"), string(text))}, "")
	if err != nil {
		t.Fatal(err)
	}
	if text := forms(t, p); strings.ContainsAny(text, "\x1b\x07") {
		t.Errorf("%q", text)
	}
	var plain, markdown bytes.Buffer
	if err := errors.Join(p.Text(&plain), p.Markdown(&markdown)); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(plain.String()) { // GitHub's runner skips spaces
		if strings.HasPrefix(strings.TrimSpace(line), "::") {
			t.Errorf("a command in a job's log: %q", line)
		}
	}
	fenced := ""
	for line := range strings.Lines(markdown.String()) {
		switch fence := strings.TrimRight(line, "`tex\n"); {
		case fenced == "" && strings.HasPrefix(line, "```"):
			fenced = strings.TrimRight(line, "tex\n")
		case fenced != "":
			if strings.TrimSpace(line) == fenced {
				fenced = ""
			}
		case strings.Contains(line, " <b>") || strings.Contains(line, " @team") || strings.HasPrefix(fence, "# head"):
			t.Errorf("%q", line)
		}
	}
}

// FuzzSource: no report makes a page fail, whatever is in it, and none makes it show a control character.
func FuzzSource(f *testing.F) {
	f.Add(linux(f))
	f.Add([]byte(`{"schema":1,"outcome":"exited","duration_seconds":1e308,"events":[{"at_seconds":-1,"kind":"SCST"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := decodeSource(bytes.NewReader(text))
		if err != nil {
			return
		}
		row := &Row{Head: s.head(), open: func() (*source, error) { return s, nil }}
		p := &Page{Groups: []*Group{{Title: "Runs", Runs: []*Row{row}}}}
		p.finish()
		if out := forms(t, p); strings.ContainsAny(out, "\x00\x1b\x07\u202e") {
			t.Fatalf("%q", out)
		}
	})
}

func ExamplePage_Text() {
	p, err := Read([]string{filepath.Join("..", "..", "test", "browser", "testdata", "older.json")}, "")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = p.Text(os.Stdout)
	// Output:
	// demo: exited: the guest exited with code 0
	//   exit code              0
	//   took                   0.155 s
	//   started (UTC)          2026-11-26 17:18:54
	//   messages               9
	//   drops                  0
	//
	// Test results: 1 passed, 0 failed:
	//   passed  demo
}
