package report_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nasty is text that would do something to a terminal, to XML or to JSON.
const nasty = "a\x1b[2Jb\x00]]><x>&\"\xff\u202e"

func result() *run.Result {
	seven, crash := int32(7), nasty+"\nsecond line"
	return &run.Result{
		ID: "id", Name: "test " + nasty, Kernel: "demo:" + nasty, StartedAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC),
		Duration: 1500 * time.Millisecond,
		Outcome:  run.Crashed, Reason: "the guest crashed", ExitCode: 122, GuestExitCode: &seven,
		Arch: "x86_64", Accelerator: "emulator", Topology: topology.OfCores(2), Memory: 512 << 20,
		RingBase: 0x1f000000, RingSize: 16 << 20,
		FirstExit: 2 * time.Millisecond,
		Ring: monitor.Stats{Messages: 3, Bytes: 100, ByType: map[string]uint64{"EXIT": 1, "CRSH": 2, "STIM": 0},
			Drops: 4, CRCErrors: 1, Lost: 9, Faults: map[string]uint64{"bad_length": 1}, BellDrains: 2},
		Rings:         8,
		Faults:        []run.Fault{{Kind: "bad_length", Detail: "too long"}},
		SchedulerExit: &run.SchedulerExit{Code: &seven},
		Crash:         &crash,
		Stimuli: []run.Stimulus{{At: time.Second, StimulusEvent: shm.StimulusEvent{ElapsedMS: 1, StepIndex: 2,
			OpCount: 3, OpKinds: 4, CgroupCount: 5, WorkerCount: 6, TotalIterations: 7}}},
		TestResults:  testResults(`{"a":1}`, "no JSON \xff", `"text"`),
		Phases:       []run.PhaseStart{{Phase: run.PhaseBoot}, {Phase: run.PhaseEnd, At: 1250 * time.Millisecond}},
		Events:       []run.Event{{At: 1250 * time.Millisecond, Kind: "CRSH", Text: nasty}},
		Stdout:       run.Output{Bytes: 70000, Tail: []byte(nasty)},
		Console:      []byte("boot\r\n" + nasty + "\r\n"),
		ConsoleTimes: []run.LineTime{{Line: 1, At: 500 * time.Millisecond}},
		Host:         run.Host{Name: "h", OS: "o", Kernel: "k", CPU: "c", CPUs: 2, Memory: 1 << 10},
		Invocation: run.Invocation{Args: []string{"ktstr-vmm", "demo"}, Dir: "/d",
			Env: []string{"KTSTR_VMM_CPUS=a=b"}},
		Omitted: run.Omitted{Stimuli: 11},
	}
}

// testResults are results with these payloads, a second apart.
func testResults(payloads ...string) (results []run.TestResult) {
	for i, p := range payloads {
		results = append(results, run.TestResult{At: time.Duration(i) * time.Second, Payload: []byte(p)})
	}
	return results
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := report.JSON(&out, "v1", result()); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	clean := "a\x1b[2Jb\x00]]><x>&\"\ufffd\u202e"
	want := map[string]any{
		"schema": 1.0, "id": "id", "name": "test " + clean, "version": "v1", "arch": "x86_64", "accelerator": "emulator",
		"started_at": "2026-01-02T03:04:05.000006Z", "duration_seconds": 1.5,
		"outcome": "crash", "reason": "the guest crashed", "exit_code": 122.0, "guest_exit_code": 7.0,
		"vm": map[string]any{"kernel": "demo:" + clean, "cpus": 2.0, "memory_bytes": 512.0 * (1 << 20),
			"topology": map[string]any{"sockets": 1.0, "dies": 1.0, "cores": 2.0, "threads": 1.0,
				"llc": map[string]any{"count": 1.0, "cores": 2.0}, "numa": nil},
			"pinning":  nil,
			"shm_base": "0x1f000000", "shm_size": 16.0 * (1 << 20), "first_exit_seconds": 0.002},
		"ring": map[string]any{"messages": 3.0, "bytes": 100.0, "by_type": map[string]any{"EXIT": 1.0, "CRSH": 2.0},
			"drops": 4.0, "crc_errors": 1.0, "lost_bytes": 9.0,
			"faults": []any{map[string]any{"kind": "bad_length", "detail": "too long"}}},
		"doorbell":       map[string]any{"rings": 8.0, "drains": 2.0},
		"scheduler_exit": map[string]any{"code": 7.0},
		"crash":          map[string]any{"message": clean + "\nsecond line"},
		"phases": []any{map[string]any{"name": "boot", "at_seconds": 0.0},
			map[string]any{"name": "end", "at_seconds": 1.25}},
		"events": []any{map[string]any{"at_seconds": 1.25, "kind": "CRSH", "text": clean}},
		"stimuli": []any{map[string]any{"at_seconds": 1.0, "elapsed_ms": 1.0, "step_index": 2.0, "op_count": 3.0,
			"op_kinds": 4.0, "cgroup_count": 5.0,
			"worker_count": 6.0, "total_iterations": 7.0}},
		"results":        []any{map[string]any{"a": 1.0}, map[string]any{"base64": "bm8gSlNPTiD/"}, "text"},
		"result_seconds": []any{0.0, 1.0, 2.0},
		"output": map[string]any{"stdout_tail": clean, "stdout_bytes": 70000.0, "stderr_tail": "",
			"stderr_bytes": 0.0},
		"console_tail":  "boot\r\n" + clean + "\r\n",
		"console_times": []any{map[string]any{"line": 1.0, "at_seconds": 0.5}},
		"host": map[string]any{"name": "h", "os": "o", "kernel": "k", "cpu": "c", "cpus": 2.0,
			"memory_bytes": 1024.0},
		"invocation": map[string]any{"args": []any{"ktstr-vmm", "demo"}, "dir": "/d",
			"env": map[string]any{"KTSTR_VMM_CPUS": "a=b"}},
		"omitted": map[string]any{"faults": 0.0, "stimuli": 11.0, "results": 0.0, "crash_bytes": 0.0,
			"console_bytes": 0.0, "output_bytes": 0.0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A result whose text is not UTF-8 does not make the report invalid: it is not JSON.
func TestJSONIsUTF8WhateverAGuestSends(t *testing.T) {
	r := result()
	r.TestResults = testResults("{\"name\":\"\xff\"}", "\"\xed\xa0\x80\"", `{"name":"ü"}`)
	var out bytes.Buffer
	if err := report.JSON(&out, "v1", r); err != nil {
		t.Fatal(err)
	}
	if !utf8.Valid(out.Bytes()) {
		t.Errorf("%q", out.String())
	}
	var got struct{ Results []map[string]string }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := []map[string]string{{"base64": "eyJuYW1lIjoi/yJ9"}, {"base64": "Iu2ggCI="}, {"name": "ü"}}
	if diff := cmp.Diff(want, got.Results); diff != "" {
		t.Error(diff)
	}
}

// hostile is what a guest says that a terminal would act on, or not show, and what is harmless.
const hostile = "\u009b2J\u007f\u202e\ufeff\u2028\U000e0041ü€"

func harmless(t *testing.T, text string) {
	t.Helper()
	for _, c := range text {
		if c != '\n' && !unicode.IsPrint(c) {
			t.Fatalf("%q is in %q", c, text)
		}
	}
}

// A terminal that shows a report as JSON acts on nothing that a guest wrote, and a reader of it gets all of that.
func TestJSONIsHarmless(t *testing.T) {
	r := result()
	r.Console = []byte(hostile)
	r.TestResults = testResults(`{"name": "` + hostile + `"}`)
	var out bytes.Buffer
	if err := report.JSON(&out, "v1", r); err != nil {
		t.Fatal(err)
	}
	harmless(t, out.String())
	var got struct {
		Console string `json:"console_tail"`
		Results []struct{ Name string }
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Console != hostile || got.Results[0].Name != hostile {
		t.Errorf("%q, %q", got.Console, got.Results[0].Name)
	}
	if !strings.Contains(out.String(), "ü€") {
		t.Error("what is printable is escaped")
	}
}

// The same goes for JUnit's XML.
func TestJUnitIsHarmless(t *testing.T) {
	r := result()
	r.Console = []byte(hostile)
	r.TestResults = testResults(`{"name": "` + hostile + `", "passed": true}`)
	var out bytes.Buffer
	if err := report.JUnit(&out, r); err != nil {
		t.Fatal(err)
	}
	harmless(t, out.String())
	var got struct {
		Out   string `xml:"system-out"`
		Cases []struct {
			Name string `xml:"name,attr"`
		} `xml:"testcase"`
	}
	if err := xml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Out != hostile || got.Cases[1].Name != hostile {
		t.Errorf("%q, %q", got.Out, got.Cases[1].Name)
	}
}

// Results that are nested make a report neither long nor unreadable: one level more than others read is no JSON, and
// no level costs more than its brackets.
func TestJSONOfNestedResults(t *testing.T) {
	nested := func(levels int, inside string) string {
		return strings.Repeat("[", levels) + inside + strings.Repeat("]", levels)
	}
	r := result()
	r.TestResults = testResults(nested(64, `"\\\"[[[["`), nested(65, ""), nested(9999, ""), nested(1<<20, ""),
		`{ "a": [1, {}] }`)
	var out bytes.Buffer
	if err := report.JSON(&out, "v1", r); err != nil {
		t.Fatal(err)
	}
	var got struct{ Results []any }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true, true, false} {
		object, _ := got.Results[i].(map[string]any)
		if _, is := object["base64"]; is != want {
			t.Errorf("result %d is in Base64: %v, want %v", i, is, want)
		}
	}
	short := "\n    {\n      \"a\": [\n        1,\n        {}\n      ]\n    }\n  ],\n"
	if !strings.Contains(out.String(), short) {
		t.Errorf("a short one is not as people read it: %.500s", out.String()[max(0, out.Len()-2000):])
	}
	r.TestResults = nil
	var without bytes.Buffer
	if err := report.JSON(&without, "v1", r); err != nil {
		t.Fatal(err)
	}
	wide := nested(60, strings.Repeat("0,", 1<<20)+"0")
	for range 4 << 10 {
		r.TestResults = append(r.TestResults, testResults(nested(64, ""))...)
	}
	r.TestResults = append(r.TestResults, testResults(wide, wide)...)
	out.Reset()
	if err := report.JSON(&out, "v1", r); err != nil {
		t.Fatal(err)
	}
	if most := 32 << 20; out.Len()-without.Len() > most {
		t.Errorf("results of %d bytes take %d of a report, want at most %d", 2*len(wide)+len(r.TestResults)*128,
			out.Len()-without.Len(), most)
	}
}

// Each result is a case of its own, with its failure's text; the same test in another package or on another kernel is
// another case.
func TestJUnitHasACaseForEachResult(t *testing.T) {
	type problem struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
	type testCase struct {
		Name    string   `xml:"name,attr"`
		Class   string   `xml:"classname,attr"`
		Failure *problem `xml:"failure"`
	}
	type suite struct {
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Errors   int        `xml:"errors,attr"`
		Cases    []testCase `xml:"testcase"`
	}
	r := &run.Result{
		Name: "example.test/a", Kernel: "vmlinuz-6.12", Outcome: run.Exited, ExitCode: 1,
		Reason: "the guest exited with code 1",
		TestResults: testResults(
			`{"name":"fast","passed":true}`, `{"name":"slow","passed":false,"message":"too slow:\n5 s"}`,
			`{"name":"slow","passed":false}`,
			`{"passed":true}`, `{"name":7,"passed":false,"message":[]}`, `{"name":"no verdict"}`,
			`[1]`, "\xff",
			`{"name":"example.test/a","passed":true}`,
		),
	}
	var out bytes.Buffer
	if err := report.JUnit(&out, r); err != nil {
		t.Fatal(err)
	}
	var got suite
	if err := xml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	const class = "example.test/a on vmlinuz-6.12"
	want := suite{class, 7, 4, 0, []testCase{
		{"example.test/a", class, &problem{"the guest exited with code 1", ""}},
		{"fast", class, nil},
		{"slow", class, &problem{"too slow:", "too slow:\n5 s"}},
		{"slow (2)", class, &problem{`{"name":"slow","passed":false}`, `{"name":"slow","passed":false}`}},
		{"result 4", class, nil},
		{"result 5", class, &problem{`{"name":7,"passed":false,"message":[]}`, `{"name":7,"passed":false,"message":[]}`}},
		{"example.test/a (2)", class, nil},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, other := range []run.Result{{Name: "example.test/b", Kernel: r.Kernel}, {Name: r.Name, Kernel: "vmlinuz-6.1"}} {
		out.Reset()
		if err := report.JUnit(&out, &other); err != nil || strings.Contains(out.String(), `"`+class+`"`) {
			t.Errorf("%s, %v", out.String(), err)
		}
	}
}

func TestJSONOfNothing(t *testing.T) {
	var out bytes.Buffer
	if err := report.JSON(&out, "v1", &run.Result{Outcome: run.Failed}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"guest_exit_code": null`, `"scheduler_exit": null`, `"crash": null`, `"stimuli": []`,
		`"results": []`, `"faults": []`, `"by_type": {}`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, out.String())
		}
	}
}

func TestJUnitIsXML(t *testing.T) {
	for outcome, want := range map[run.Outcome][2]int{run.Crashed: {0, 1}, run.Exited: {1, 0}} {
		r := result()
		r.Outcome = outcome
		var out bytes.Buffer
		if err := report.JUnit(&out, r); err != nil {
			t.Fatal(err)
		}
		var suite struct {
			Failures int    `xml:"failures,attr"`
			Errors   int    `xml:"errors,attr"`
			Out      string `xml:"system-out"`
			Case     struct {
				Name  string `xml:"name,attr"`
				Class string `xml:"classname,attr"`
			} `xml:"testcase"`
		}
		if err := xml.Unmarshal(out.Bytes(), &suite); err != nil {
			t.Fatalf("%v in\n%s", err, out.String())
		}
		if suite.Failures != want[0] || suite.Errors != want[1] || !strings.HasPrefix(suite.Case.Name, "test a") ||
			!strings.Contains(suite.Case.Class, " on demo:a") || !strings.HasPrefix(suite.Out, "boot") {
			t.Errorf("%s: %+v", outcome, suite)
		}
	}
}

// Nothing that a guest wrote reaches a terminal as it is.
func TestTextIsHarmless(t *testing.T) {
	var out bytes.Buffer
	if err := report.Text(&out, result(), false); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\x00\r\u202e") {
		t.Errorf("%q", out.String())
	}
	for _, want := range []string{"\ncrash: the guest crashed\n", "  exit code   122\n",
		"messages    3 (CRSH 2, EXIT 1), 100 bytes",
		"bad_length: too long", "  a\\x1b[2Jb\\x00", "\n  second line\n", "end of the console:\n  boot\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	var coloured bytes.Buffer
	if err := report.Text(&coloured, result(), true); err != nil ||
		!strings.Contains(coloured.String(), "\x1b[1;31mcrash\x1b[0m") {
		t.Errorf("%q, %v", coloured.String(), err)
	}
}

func TestDescribe(t *testing.T) {
	code := shm.EncodeCode(-3)
	for _, tc := range []struct {
		m    shm.Message
		want string
	}{
		{shm.Message{Type: shm.Exit, Payload: code[:]}, "code -3"},
		{shm.Message{Type: shm.Exit, Payload: []byte("12345")}, "5 bytes: 3132333435"},
		{shm.Message{Type: shm.ScenarioStart}, ""},
		{shm.Message{Type: shm.TestResult, Payload: []byte("{\"x\":\"\x1b[1m\"}")}, `{"x":"\x1b[1m"}`},
		{shm.Message{Type: shm.RawOutput, Payload: []byte{0xff, 0}}, "2 bytes: ff00"},
		{shm.Message{Type: shm.Crash, Payload: []byte(strings.Repeat("x", 200))}, strings.Repeat("x", 160) + "… (200 bytes)"},
		{shm.Message{Type: 0x42, Payload: make([]byte, 100)}, "100 bytes: " + strings.Repeat("0", 32)},
	} {
		if got := report.Describe(tc.m); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.m.Type, got, tc.want)
		}
	}
}

// locked is a buffer that a stream's goroutine and a test share.
type locked struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A flood becomes a few lines and a count, by type; what ends a run is shown all the same.
func TestLiveCountsFloods(t *testing.T) {
	var out locked
	s := report.NewStream(&out)
	l := report.NewLive(s)
	for range 10_000 {
		l.Message(time.Second, shm.Message{Type: shm.RawOutput, CRCOK: true})
	}
	l.Message(time.Second, shm.Message{Type: 0x42, CRCOK: true})
	code := shm.EncodeCode(0)
	l.Message(time.Second, shm.Message{Type: shm.Exit, CRCOK: true, Payload: code[:]})
	l.Message(time.Second, shm.Message{Type: shm.RawOutput})
	l.Close()
	if err := s.Close(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if n := strings.Count(text, "\n"); n > 25 {
		t.Errorf("%d lines", n)
	}
	for _, want := range []string{"and RAWO 9984, others 1 more\n", "    1.000s  EXIT  code 0\n", "and RAWO 1 more\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// What was held back is shown after a moment, though no message comes that would show it.
func TestLiveShowsWhatItHeld(t *testing.T) {
	var out locked
	s := report.NewStream(&out)
	l := report.NewLive(s)
	for range 100 {
		l.Message(0, shm.Message{Type: shm.Stimulus, CRCOK: true})
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out.String(), "and STIM 84 more"); {
		if time.Now().After(deadline) {
			t.Fatalf("never shown:\n%s", out.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
	l.Close()
	if err := s.Close(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// within is a context that ends after a time.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestStreamDoesNotWaitForItsReader(t *testing.T) {
	r, w := io.Pipe()
	s := report.NewStream(w)
	for i := range 1000 {
		fmt.Fprintf(s, "line %d\n", i)
	}
	for range 2 {
		if err := s.Close(within(t, 20*time.Millisecond)); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("a reader that does not read: %v", err)
		}
	}
	if s.Lost() < 1000 {
		t.Errorf("%d bytes lost", s.Lost())
	}
	r.CloseWithError(errors.New("gone")) // lets the stream's goroutine end

	r, w = io.Pipe()
	s = report.NewStream(w)
	r.CloseWithError(errors.New("gone"))
	fmt.Fprint(s, "text")
	if err := s.Flush(within(t, 10*time.Second)); err == nil || err.Error() != "gone" {
		t.Errorf("a reader that went away: %v", err)
	}
	if _, err := fmt.Fprint(s, "more"); err == nil {
		t.Error("a stream whose reader went away takes more")
	}
	if !s.TryWrite([]byte("and more"), 1) || s.Lost() != uint64(len("textmoreand more")) {
		t.Errorf("%d bytes lost", s.Lost())
	}
}

// A stream with a limit has no room for a while when its reader is slow, and loses nothing.
func TestTryWrite(t *testing.T) {
	r, w := io.Pipe()
	s := report.NewStream(w)
	var want bytes.Buffer
	got := make(chan []byte)
	go func() {
		var all []byte
		buf := make([]byte, 100)
		for {
			n, err := r.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				got <- all
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
	refused := 0
	for i := range 500 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%90))
		want.WriteString(line)
		for !s.TryWrite([]byte(line), 1000) {
			refused++
			time.Sleep(100 * time.Microsecond)
		}
		if n := s.Pending(); n > 1000 {
			t.Fatalf("%d bytes wait", n)
		}
	}
	for !s.TryWrite(make([]byte, 2000), 1000) { // alone
		time.Sleep(100 * time.Microsecond)
	}
	want.Write(make([]byte, 2000))
	if err := s.Close(within(t, 30*time.Second)); err != nil || s.Lost() != 0 {
		t.Fatal(err, s.Lost())
	}
	w.Close()
	if all := <-got; !bytes.Equal(all, want.Bytes()) {
		t.Errorf("%d bytes arrived of %d", len(all), want.Len())
	}
	if refused == 0 {
		t.Error("there was always room")
	}
}

// A kernel's panic is from the console and not shown twice; neither is a carriage return.
func TestTextShowsAPanicOnce(t *testing.T) {
	r := result()
	panicked := "Kernel panic - not syncing: boom\n\ufffd last line"
	r.Crash, r.Panicked, r.Console = &panicked, true, []byte("boot\r\nKernel panic - not syncing: boom\r\n\xff last "+
		"line\r")
	var out bytes.Buffer
	if err := report.Text(&out, r, false); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "last line"); n != 1 || strings.Contains(out.String(), `\r`) {
		t.Errorf("%d times in %s", n, out.String())
	}
}
