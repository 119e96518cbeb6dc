package browser

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// attacks run a script in a page that does not escape them, in one place or another, or leave it.
var attacks = []string{
	`<script>window.pwned = 1</script>`,
	`</script><script>window.pwned = 1</script>`,
	`</pre></style></title></textarea><img src=x onerror="window.pwned = 1">`,
	`" onmouseover="window.pwned = 1" autofocus onfocus="window.pwned = 1" x="`,
	`' onfocus='window.pwned = 1' autofocus x='`,
	`<svg onload="window.pwned = 1"><animate onbegin="window.pwned = 1" attributeName=x dur=1s>`,
	`<details open ontoggle="window.pwned = 1">`,
	`<meta http-equiv="refresh" content="0;url=https://example.invalid/">`,
	`<base href="https://example.invalid/"><link rel=stylesheet href=x><iframe srcdoc="<script>top.pwned=1</script>">`,
	`<!--<script>`, `-->`, `]]>`, `{{.}}`, `${window.pwned = 1}`, "javascript:window.pwned=1",
	"\x00\x1b]0;title\x07\u202e\u2028\ufeff",
}

// hostile replaces all texts in a report, but for those that say what it is.
func hostile(v any, attack string) any {
	switch v := v.(type) {
	case map[string]any:
		for key, x := range v {
			if key != "started_at" && key != "status" && key != "folder" {
				v[key] = hostile(x, attack)
			}
		}
		if _, ok := v["by_type"]; ok {
			v["by_type"] = map[string]any{attack: 1}
		}
	case []any:
		for i, x := range v {
			v[i] = hostile(x, attack)
		}
	case string:
		return attack + v // no two runs of a suite have the same name
	}
	return v
}

// altered writes a report with an attack in it.
func altered(t *testing.T, path, attack string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return written(t, filepath.Base(path), hostile(v, attack))
}

// Whatever is in a report, a browser shows it as text: in any place of a page, alone and all in one.
func TestHostile(t *testing.T) {
	linux := filepath.Join("testdata", "linux.json")
	results, _ := smoke(t)
	var files []string
	for _, attack := range append(attacks, strings.Join(attacks, "")) {
		files = append(files, altered(t, linux, attack))
	}
	all := strings.Join(attacks, "")
	for name, path := range map[string]string{
		"a run":  reported(t, 0, altered(t, linux, all)),
		"runs":   reported(t, 0, files...),
		"suite":  reported(t, 0, altered(t, filepath.Join(results, "suite.json"), all)),
		"no run": reported(t, 1, linux, written(t, "<img src=x onerror=alert(1)>.json", "{}")),
	} {
		b := open(t, path, look{})
		eval[bool](t, b, `document.querySelectorAll("details").forEach(d => d.open = true), true`)
		eval[bool](t, b, `document.querySelectorAll("input, a, button, summary, pre").forEach(e => e.focus()), true`)
		if eval[bool](t, b, `"pwned" in window`) {
			t.Errorf("%s: a report has run a script", name)
		}
		const foreign = `document.querySelectorAll("img, iframe, base, link, animate, meta[http-equiv=refresh],` +
			` script:not(:last-of-type), [onfocus], [onerror], [onload], [onmouseover], [ontoggle], [autofocus]").length`
		if n := eval[int](t, b, foreign); n != 0 {
			t.Errorf("%s: a report has made %d elements", name, n)
		}
		if at := eval[string](t, b, `location.href`); !strings.HasPrefix(at, "file://"+path) {
			t.Errorf("%s: a report has left the page for %s", name, at)
		}
		if strings.ContainsAny(eval[string](t, b, `document.body.textContent`), "\x00\x1b\u202e") {
			t.Errorf("%s: a control character is shown as it is", name)
		}
		b.quiet(t)
	}
}

// If a page did not escape something, its policy would stop the rest of the attack.
func TestPolicy(t *testing.T) {
	text, err := os.ReadFile(reported(t, 0, filepath.Join("testdata", "linux.json")))
	if err != nil {
		t.Fatal(err)
	}
	attack := strings.Join(attacks[:7], "") +
		`<img src="https://example.invalid/x.png"><link rel=stylesheet href="https://example.invalid/x.css">` +
		`<script src="https://example.invalid/x.js"></script><style>body { display: none }</style>` +
		`<iframe srcdoc="<script>top.pwned = 1</script>"></iframe><base href="https://example.invalid/">` +
		`<form id=f action="https://example.invalid/f"><input></form><object data="https://example.invalid/o"></object>`
	b := open(t, written(t, "page.html", strings.Replace(string(text), "placing 4 workers", attack, 1)), look{})
	eval[bool](t, b, `document.querySelector("#f").requestSubmit(), true`)
	b.waitFor(t, `document.readyState === "complete"`)
	if eval[bool](t, b, `"pwned" in window || getComputedStyle(document.body).display === "none"`) {
		t.Error("the attack was not stopped")
	}
	if at := eval[string](t, b, `document.baseURI`); !strings.HasPrefix(at, "file://") {
		t.Errorf("links lead to %s", at)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, url := range b.requests {
		if strings.Contains(url, "example.invalid") && !b.stopped[id] {
			t.Errorf("the page asked for %s", url)
		}
	}
	if len(b.trouble) < 10 {
		t.Errorf("the policy complains only about %q: was there an attack?", b.trouble)
	}
}

// many is a report of ten thousand runs, made of another one.
func many(t *testing.T, results string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(results, "suite.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	runs, all := v["runs"].([]any), []any{}
	for i := range 10000 {
		x := maps.Clone(runs[i%len(runs)].(map[string]any))
		x["name"] = fmt.Sprintf("%s[seed=%d]", x["name"], i)
		all = append(all, x)
	}
	v["runs"] = all
	return written(t, "suite.json", v)
}

// A suite of ten thousand runs has a page that can be used.
func TestManyRuns(t *testing.T) {
	results, _ := smoke(t)
	path := reported(t, 0, many(t, results))
	if info, err := os.Stat(path); err != nil || info.Size() > 16<<20 {
		t.Errorf("the page: %v, %d bytes, want at most 16 MiB", err, info.Size())
	}
	b := open(t, path, look{})
	if n := eval[int](t, b, `document.querySelectorAll("table.runs tbody tr").length`); n != 10000 {
		t.Errorf("%d runs in the table", n)
	}
	if text := eval[string](t, b, `document.querySelector("#bound").textContent`); !strings.Contains(text, "9800 runs") {
		t.Errorf("it says of its bound: %q", text)
	}
	eval[bool](t, b, `(() => {
		const find = document.querySelector(".find");
		find.value = "boots seed=9996";
		find.dispatchEvent(new Event("input"));
		return true;
	})()`)
	b.waitFor(t, `document.querySelectorAll("table.runs tbody tr:not([hidden])").length === 1`)
	b.quiet(t)
}
