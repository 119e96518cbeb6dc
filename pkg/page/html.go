package page

import (
	"bufio"
	"crypto/sha256"
	_ "embed" // of the files below
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

// policy lets a browser take this page's own style and script, and nothing else from anywhere: whatever is in a report
// can't run, load or send anything.
func policy() string {
	hash := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return "default-src 'none'; style-src " + hash(pageCSS) + "; script-src " + hash(pageJS) +
		"; base-uri 'none'; form-action 'none'"
}

// document is what the template is filled with.
type document struct {
	*Page
	Title   string
	Version string
	Policy  string
	CSS     template.CSS
	JS      template.JS
	Single  bool // one run alone
}

// parsed is the page's template.
var parsed = sync.OnceValues(func() (*template.Template, error) {
	return template.New("page").Funcs(template.FuncMap{
		"seconds": func(s float64) string { return strings.TrimSuffix(seconds(s), " s") },
		"sorted":  func(s float64) string { return strconv.FormatFloat(s, 'g', -1, 64) },
		"changes": changes,
	}).Parse(pageHTML)
})

// HTML writes the page as HTML in one file. Version is the program's.
func (p *Page) HTML(w io.Writer, version string) error {
	t, err := parsed()
	if err != nil {
		return err
	}
	d := document{Page: p, Title: p.title(), Version: version, Policy: policy(),
		CSS: template.CSS(pageCSS), JS: template.JS(pageJS), Single: len(p.Groups) == 1 && p.Groups[0].single()}
	b := bufio.NewWriter(w)
	if err := t.Execute(b, d); err != nil {
		return err
	}
	return b.Flush()
}

// single reports whether the group is one run of no suite.
func (g *Group) single() bool { return g.Suite == nil && len(g.Runs) == 1 }

// title is what a browser's tab shows.
func (p *Page) title() string {
	name := p.Groups[0].Title
	if p.Groups[0].single() {
		name = p.Groups[0].Runs[0].Name
	}
	for _, g := range p.Groups {
		if g.Bad() {
			return "✗ " + name
		}
	}
	return "✓ " + name
}

// changed are runs that changed in one way.
type changed struct {
	Title string
	Items []string
	Note  string
}

// maxChanges bounds a list of runs that changed.
const maxChanges = 100

// changes is what a comparison says beside what newly fails and is flaky, of which the page has lists with links.
func changes(c *suite.Comparison) (all []changed) {
	add := func(title string, n int, item func(int) string) {
		if n == 0 {
			return
		}
		x := changed{Title: fmt.Sprintf("%s: %d", title, n)}
		for i := range min(n, maxChanges) {
			x.Items = append(x.Items, line(item(i)))
		}
		if n > maxChanges {
			x.Note = fmt.Sprintf("and %d more", n-maxChanges)
		}
		all = append(all, x)
	}
	add("missing", len(c.Missing), func(i int) string { return c.Missing[i] })
	add("skipped", len(c.Skipped), func(i int) string { return c.Skipped[i].Name })
	add("still failing", len(c.Still), func(i int) string { return c.Still[i].Name })
	add("slower", len(c.Slower), func(i int) string {
		x := c.Slower[i]
		return fmt.Sprintf("%s: %s was %.4g, is %.4g", x.Name, strings.ReplaceAll(x.What, "_", " "), x.Old, x.New)
	})
	add("fixed", len(c.Fixed), func(i int) string { return c.Fixed[i].Name })
	add("added", len(c.Added), func(i int) string { return c.Added[i] })
	return all
}
