package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

const troubleshooting = "docs/troubleshooting.md"

// details are files whose errors never begin a line: they say what is wrong with what an error in front of them names,
// and that one has an entry.
var details = map[string]string{
	"pkg/fdt/decode.go":          "not a device tree that can be read",
	"pkg/initramfs/elf.go":       "can't be put into the guest",
	"pkg/tally/histogram.go":     "no metrics of runs",
	"pkg/vm/arm64/image.go":      "bad kernel",
	"pkg/vm/packed/formats.go":   "kernel payload that the host can't unpack",
	"pkg/vm/packed/packed.go":    "bad kernel",
	"pkg/vm/x86/elf.go":          "bad kernel",
	"pkg/guestmem/guestmem.go":   "setting up the machine failed",
	"internal/agentproto/job.go": "this is no job for the agent",
	"pkg/introspect/btf.go":      "the kernel's types (CONFIG_DEBUG_INFO_BTF)",
	"pkg/exporter/protocol.go":   "refused",
	"pkg/agent/stimulus.go":      "STIM takes a JSON object as the report has it: …",
	"cmd/ktstr-vmm/manpages.go":  "", // of a program for packagers
	"guest/pack/main.go":         "", // of a program that builds the guest
}

// forTests are packages of which nothing is in the program.
var forTests = []string{"internal/guide", "internal/kerneltest", "internal/smaps", "internal/testenv",
	"internal/vmtest"}

// sentences are files with texts for people that no error is made of: why a run ended, what broke the ring, how a
// scheduler ended. All that they format is such a text.
var sentences = []string{"cmd/ktstr-vmm/doctor.go", "cmd/ktstr-vmm/topology.go", "cmd/ktstr-vmm/view.go",
	"pkg/accel/accel.go", "pkg/agent/schedext.go", "pkg/agent/scheduler.go", "pkg/run/build.go", "pkg/run/outcome.go",
	"pkg/run/stall.go", "pkg/run/watch.go", "pkg/shm/fault.go", "pkg/vm/qemu/instance.go"}

// said are those of them of which every string of some words is one, but for those that begin as notSaid.
var (
	said    = []string{"cmd/ktstr-vmm/doctor.go", "cmd/ktstr-vmm/view.go", "pkg/run/outcome.go"}
	notSaid = []string{"MemAvailable: …", "echo 'KERNEL", "FaultKind(…)", "within …", "ktstr-vmm: …"}
)

// verb is what stands for a value in a format.
var verb = regexp.MustCompile(`%[-+# 0]*[0-9]*(\.[0-9]+)?[a-zA-Z]`)

var ellipses = regexp.MustCompile(`…(…)+`)

// message is a text with … for what varies; "" for one that has no words of its own, or none to begin with: then what
// it wraps has an entry.
func message(format string) string {
	if strings.HasPrefix(format, "%w") || format == "%v" {
		return ""
	}
	text := verb.ReplaceAllString(strings.ReplaceAll(format, "%%", "\x00"), "…")
	text = strings.TrimSpace(strings.ReplaceAll(text, "\x00", "%"))
	text = ellipses.ReplaceAllString(strings.Join(strings.Fields(text), " "), "…")
	if strings.IndexFunc(text, unicode.IsLetter) < 0 {
		return ""
	}
	return text
}

// literal is the value of a string that may be written in pieces; what is no string in it varies.
func literal(e ast.Expr) (text string, found bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.BinaryExpr:
		a, foundA := literal(e.X)
		b, foundB := literal(e.Y)
		if e.Op != token.ADD || !foundA && !foundB {
			return "", false
		}
		for _, part := range []struct {
			text  *string
			found bool
		}{{&a, foundA}, {&b, foundB}} {
			if !part.found {
				*part.text = "%v"
			}
		}
		return a + b, true
	}
	return "", false
}

// formats are the texts for people in a file's calls: errors, warnings, and what is said on stderr.
func formats(file *ast.File, sentence bool) (texts []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		name := ""
		switch f := call.Fun.(type) {
		case *ast.SelectorExpr:
			name = f.Sel.Name
			if x, ok := f.X.(*ast.Ident); ok && x.Name == "errors" {
				name = "errors." + name
			}
		case *ast.Ident:
			name = f.Name
		}
		at := 0
		switch name {
		case "errors.New", "Warn", "Error", "say", "fail":
		case "Fprintf", "Fprintln":
			if !strings.HasSuffix(strings.ToLower(types.ExprString(call.Args[0])), "stderr") {
				return true
			}
			at = 1
		case "Sprintf":
			if !sentence {
				return true
			}
		case "Errorf": // fmt's, and config's, which has the place first
			if _, found := literal(call.Args[0]); !found {
				at = 1
			}
		default:
			return true
		}
		if at < len(call.Args) {
			if text, found := literal(call.Args[at]); found {
				texts = append(texts, text)
			}
		}
		return true
	})
	return texts
}

// saying are all strings of some words in a file's functions.
func saying(file *ast.File) (texts []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec, *ast.Field:
			return false
		case *ast.KeyValueExpr: // of a command
			if key, ok := n.Key.(*ast.Ident); ok && (key.Name == "Short" || key.Name == "Long") {
				return false
			}
		case *ast.CallExpr: // a flag
			if f, ok := n.Fun.(*ast.SelectorExpr); ok && strings.HasSuffix(f.Sel.Name, "Var") {
				return false
			}
		case ast.Expr:
			if text, found := literal(n); found {
				if strings.Count(verb.ReplaceAllString(text, ""), " ") > 1 {
					texts = append(texts, text)
				}
				return false
			}
		}
		return true
	})
	return texts
}

// messages are what the program, the agent and the packages that they are made of can say, with where.
func messages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, dir := range []string{"cmd", "pkg", "internal", "guest"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			rel, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			rel = filepath.ToSlash(rel)
			_, detail := details[rel]
			if detail && details[rel] == "" || slices.Contains(forTests, path.Dir(rel)) {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				return err
			}
			if detail { // what it exports can be in front of other errors, too
				file.Decls = slices.DeleteFunc(file.Decls, func(d ast.Decl) bool {
					_, isVar := d.(*ast.GenDecl)
					return !isVar
				})
			}
			texts := formats(file, slices.Contains(sentences, rel))
			if slices.Contains(said, rel) {
				texts = append(texts, saying(file)...)
			}
			for _, text := range texts {
				m := message(text)
				if m != "" && !slices.ContainsFunc(notSaid, func(s string) bool { return strings.HasPrefix(m, s) }) {
					found[m] = rel
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

var span = regexp.MustCompile("`` (.+?) ``|`([^`]+)`")

// entries are the messages that the page has, from the first column of its tables.
func entries(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for line := range strings.Lines(page(t, troubleshooting)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		first := bar.Split(strings.TrimPrefix(line, "|"), 2)[0]
		for _, s := range span.FindAllStringSubmatch(first+" ", -1) {
			key := strings.ReplaceAll(s[1]+s[2], `\|`, "|")
			if all[key] {
				t.Errorf("%s has %q twice", troubleshooting, key)
			}
			all[key] = true
		}
	}
	return all
}

// Each message has an entry, by its words, and each entry is of a message that there is.
func TestTroubleshooting(t *testing.T) {
	where, explained := messages(t), entries(t)
	for _, m := range slices.Sorted(maps.Keys(where)) {
		if !explained[m] {
			t.Errorf("%s can say this, which %s has no entry for:\n| `%s` | what it means | what to do |", where[m],
				troubleshooting, m)
		}
	}
	for _, e := range slices.Sorted(maps.Keys(explained)) {
		if _, found := where[e]; !found {
			t.Errorf("%s has an entry for %q, which nothing says", troubleshooting, e)
		}
	}
	for file, first := range details {
		page(t, file) // it is there
		if first != "" && where[first] == "" {
			t.Errorf("%q, behind which the errors in %s come, is said nowhere", first, file)
		}
	}
}

// What a message's entry is called.
func TestMessage(t *testing.T) {
	for format, want := range map[string]string{
		"no KVM on this host":         "no KVM on this host",
		"--jobs %d: it can be 0":      "--jobs …: it can be 0",
		"%s is %-8q, %.2f%% of %+v\n": "… is …, …% of …",
		"the guest crashed%s%s":       "the guest crashed…",
		"%w: it has %d bytes":         "", // what it wraps has one
		"%s: %w":                      "",
	} {
		if got := message(format); got != want {
			t.Errorf("%q: %q, want %q", format, got, want)
		}
	}
}
