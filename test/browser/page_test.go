package browser

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

const suiteYAML = `
name: smoke
defaults: {timeout: 20s}
runs:
  - {name: boots, scenario: ok, labels: [quick]}
  - {name: survives, scenario: crash}
  - {name: loses nothing, scenario: "flood,count=2000,size=100"}
  - {name: fails, scenario: fail, expect: {exit-code: 3}}
`

// runSmoke runs the suite, in which a run fails that did not in the report of before.
var runSmoke = sync.OnceValue(func() (err error) {
	file := filepath.Join(dir, "smoke.yaml")
	if err := os.WriteFile(file, []byte(suiteYAML), 0o600); err != nil {
		return err
	}
	results := filepath.Join(dir, "results")
	if out, err := command("suite", file, "--results", results).CombinedOutput(); err == nil {
		return fmt.Errorf("nothing has failed: %s", out)
	}
	now, err := os.ReadFile(filepath.Join(results, "suite.json"))
	if err != nil {
		return err
	}
	before := strings.Replace(string(now), `"status": "failed"`, `"status": "passed"`, 1)
	return os.WriteFile(filepath.Join(dir, "before.json"), []byte(before), 0o600)
})

// smoke returns the results of that suite, and the report of before.
func smoke(t *testing.T) (results, before string) {
	t.Helper()
	if err := runSmoke(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "results"), filepath.Join(dir, "before.json")
}

// demo runs a scenario and returns its report.
func demo(t *testing.T, code int, scenario string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.json")
	vmm(t, code, "demo", "--scenario", scenario, "--report", path, "--report-format", "json")
	return path
}

// overflows are the elements that stick out of the page; what scrolls by itself may hold more.
const overflows = `(() => {
	const width = document.documentElement.clientWidth, found = [];
	if (document.documentElement.scrollWidth > width) found.push("the page scrolls");
	for (const e of document.querySelectorAll(".scroll th")) {
		if (e.getBoundingClientRect().height > 40) found.push("broken: " + e.textContent);
	}
	for (const e of document.querySelectorAll("body *")) {
		const r = e.getBoundingClientRect();
		if (e.closest("pre, .scroll, .hide") || r.width === 0) continue;
		if (r.right > width + 1 || r.left < -1) found.push(e.tagName + " " + e.textContent.slice(0, 40));
	}
	return found;
})()`

// spilled are names that are shown beyond their bars in a timeline.
const spilled = `Array.from(document.querySelectorAll(".timeline text.in")).filter(e =>
	e.getBoundingClientRect().right > e.closest(".item").querySelector("rect").getBoundingClientRect().right + 1 &&
	getComputedStyle(e.parentElement).overflow === "visible").map(e => e.textContent)`

// pale are texts whose contrast is below what WCAG 2 asks for (1.4.3).
const pale = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
	const rgba = c => {
		canvas.clearRect(0, 0, 1, 1);
		canvas.fillStyle = c;
		canvas.fillRect(0, 0, 1, 1);
		return canvas.getImageData(0, 0, 1, 1).data;
	};
	const light = c => {
		const [r, g, b] = Array.from(rgba(c)).map(x => x / 255)
			.map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
		return .2126 * r + .7152 * g + .0722 * b;
	};
	const behind = e => {
		if (e.matches(".in")) return getComputedStyle(e.closest(".item").querySelector("rect")).fill;
		for (; e; e = e.parentElement) {
			const c = getComputedStyle(e).backgroundColor;
			if (rgba(c)[3] === 255) return c;
		}
		return "white";
	};
	const found = new Set();
	for (const e of document.querySelectorAll("body *")) {
		if (!Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim() !== "")) continue;
		if (["SCRIPT", "title"].includes(e.tagName) || !e.checkVisibility()) continue;
		const front = e.namespaceURI.endsWith("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color;
		const [a, b] = [light(front), light(behind(e))].sort((x, y) => y - x);
		const ratio = (a + .05) / (b + .05);
		if (ratio < 4.5) found.add(e.tagName + "." + e.getAttribute("class") + " " + ratio.toFixed(2));
	}
	return Array.from(found);
})()`

// Pages can be read: narrow and wide, light and dark, whole and with all that is folded.
func TestLooks(t *testing.T) {
	results, before := smoke(t)
	for name, path := range map[string]string{
		"run":   reported(t, 0, demo(t, 0, "ok")),
		"crash": reported(t, 0, demo(t, 122, "crash")),
		"suite": reported(t, 0, results, "--compare", before),
		"older": reported(t, 0, filepath.Join("testdata", "older.json")),
		"linux": reported(t, 0, filepath.Join("testdata", "linux.json")),
		"names": reported(t, 0, wideNames(t)),
		"mixed": reported(t, 0, filepath.Join("testdata", "mixed.json"), filepath.Join("testdata", "all.json")),
	} {
		b := open(t, path, look{})
		eval[bool](t, b, `document.querySelectorAll("details").forEach(d => d.open = true), true`)
		b.named(t)
		for _, l := range []look{{width: 400}, {width: 400, dark: true}, {width: 1280}, {width: 1280, dark: true}} {
			b.look(t, l)
			if found := eval[[]string](t, b, overflows); len(found) > 0 {
				t.Errorf("%s, %+v: out of the page: %q", name, l, found)
			}
			if found := eval[[]string](t, b, spilled); len(found) > 0 {
				t.Errorf("%s, %+v: names out of their bars: %q", name, l, found)
			}
			if found := eval[[]string](t, b, pale); len(found) > 0 {
				t.Errorf("%s, %+v: pale: %q", name, l, found)
			}
			const isDark = `getComputedStyle(document.body).backgroundColor !== "rgb(255, 255, 255)"`
			if dark := eval[bool](t, b, isDark); dark != l.dark {
				t.Errorf("%s: dark: %t, want %t", name, dark, l.dark)
			}
		}
		b.quiet(t)
	}
}

// wideNames is a report in which a phase has a name that is as wide as its length allows.
func wideNames(t *testing.T) string {
	t.Helper()
	return written(t, "wide.json", `{"schema": 1, "id": "x", "name": "x", "outcome": "exited", "duration_seconds": 9,
		"phases": [{"name": "boot", "at_seconds": 0}, {"name": "WWWWWWWWWW", "at_seconds": 4},
		{"name": "end", "at_seconds": 6}]}`)
}

// named fails the test if something that is read out, or that can be used, has no name.
func (b *tab) named(t *testing.T) {
	t.Helper()
	nodes := call(t, b, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes
	roles := []string{"button", "checkbox", "link", "searchbox", "region", "image", "DisclosureTriangle"}
	for _, n := range nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		role := strings.Trim(string(n.Role.Value), `"`)
		if slices.Contains(roles, role) && (n.Name == nil || strings.Trim(string(n.Name.Value), `"`) == "") {
			t.Errorf("a %s has no name", role)
		}
	}
}

// names are a table's runs as they are shown.
const names = `Array.from(document.querySelectorAll("table.runs tbody tr:not([hidden]) td:nth-child(2) a"),` +
	` a => a.textContent)`

func (b *tab) names(t *testing.T, want ...string) {
	t.Helper()
	b.waitFor(t, fmt.Sprintf("JSON.stringify(%s) === %q", names, quoted(want)))
}

func quoted(words []string) string {
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = fmt.Sprintf("%q", w)
	}
	return "[" + strings.Join(all, ",") + "]"
}

// A suite's table has what newly fails first, is filtered and sorted, and leads to all there is of a run.
func TestSuite(t *testing.T) {
	results, before := smoke(t)
	b := open(t, reported(t, 0, results, "--compare", before), look{})
	b.names(t, "survives", "boots", "loses nothing", "fails")
	first := eval[string](t, b, `document.querySelector(".first").textContent`)
	if !strings.Contains(first, "Newly failing: 1") || !strings.Contains(first, "survives") {
		t.Errorf("first: %q", first)
	}
	b.do(t, chromedp.SendKeys(chromedp.CSS(".find"), "QUICK"))
	b.names(t, "boots")
	b.do(t, chromedp.SendKeys(chromedp.CSS(".find"), strings.Repeat(kb.Backspace, 5)+"exited fails"))
	b.names(t, "fails")
	b.do(t, chromedp.SendKeys(chromedp.CSS(".find"), strings.Repeat(kb.Backspace, 12)))
	b.names(t, "survives", "boots", "loses nothing", "fails")
	b.do(t, chromedp.Click(chromedp.CSS(`input[value=passed]`)))
	b.names(t, "survives")
	b.do(t, chromedp.Click(chromedp.CSS(`input[value=passed]`)))
	click := func(column int) {
		b.do(t, chromedp.Click(chromedp.CSS(fmt.Sprintf("table.runs th:nth-child(%d) button", column))))
	}
	click(5) // messages, most first
	b.waitFor(t, names+`[0] === "loses nothing"`)
	click(5)
	b.waitFor(t, names+`[3] === "loses nothing"`)
	click(2)
	b.names(t, "boots", "fails", "loses nothing", "survives")
	b.do(t, chromedp.Focus(chromedp.CSS("table.runs th:nth-child(2) button")), chromedp.KeyEvent(kb.Enter))
	b.names(t, "survives", "loses nothing", "fails", "boots")
	b.do(t, chromedp.Click(chromedp.CSS(".first a")))
	b.waitFor(t, `document.querySelector(location.hash).checkVisibility()`)
	text := eval[string](t, b, `document.querySelector(location.hash).innerText`)
	for _, want := range []string{"at crash (demo.c)", "ktstr-vmm demo --scenario=crash --timeout=20s"} {
		if !strings.Contains(text, want) {
			t.Errorf("the run's section has no %q: %s", want, text)
		}
	}
	b.quiet(t)
}

// Without scripts all can be read, and links open what they lead to.
func TestNoScript(t *testing.T) {
	results, _ := smoke(t)
	b := open(t, reported(t, 0, results), look{noScript: true})
	b.do(t, chromedp.Click(chromedp.CSS("table.runs a")))
	b.waitFor(t, `document.querySelector("#run-1").checkVisibility()`)
	const controls = `Array.from(document.querySelectorAll("button, input")).filter(e => e.checkVisibility()).length`
	if n := eval[int](t, b, controls); n != 0 {
		t.Errorf("%d controls that do nothing", n)
	}
	b.quiet(t)
}

// The console of a run is searched, and shows when its lines came.
func TestConsole(t *testing.T) {
	b := open(t, reported(t, 0, filepath.Join("testdata", "linux.json")), look{})
	const pre = `document.querySelector("input.lines").closest(".text").querySelector("pre").textContent`
	all := eval[string](t, b, pre)
	b.do(t, chromedp.SendKeys(chromedp.CSS("input.lines"), "EXIT"))
	b.waitFor(t, pre+` !== `+fmt.Sprintf("%q", all))
	for line := range strings.Lines(eval[string](t, b, pre)) {
		if !strings.Contains(strings.ToLower(line), "exit") || !strings.Contains(all, line) {
			t.Errorf("it shows %q", line)
		}
	}
	const boxes = `Array.from(document.querySelectorAll("input.lines")).filter(e => e.checkVisibility()).length`
	if n := eval[int](t, b, boxes); n != 1 {
		t.Errorf("%d texts can be searched, and one is long", n)
	}
	b.do(t, chromedp.SendKeys(chromedp.CSS("input.lines"), strings.Repeat(kb.Backspace, 4)))
	b.waitFor(t, pre+` === `+fmt.Sprintf("%q", all))
	b.quiet(t)
}
