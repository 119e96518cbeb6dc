package config

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/run"
)

func set(t *testing.T, s *Settings, text string) error {
	t.Helper()
	d, err := Parse("f.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for key, node := range Pairs(d.Root) {
		if err := s.SetNode(d, key, node); err != nil {
			return err
		}
	}
	return nil
}

// What is set later, as a suite's run does after its defaults, takes the place of a list of any length.
func TestListsAreReplaced(t *testing.T) {
	for _, first := range []string{"[]", "A=1", "[A=1]", "[A=1, B=2]"} {
		for text, want := range map[string][]string{"[]": {}, "C=3": {"C=3"}, "[C=3]": {"C=3"},
			"['C=3,x', D=4]": {"C=3,x", "D=4"}} {
			s := New(Run)
			if err := errors.Join(set(t, s, "env: "+first), set(t, s, "env: "+text)); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.Env, want) {
				t.Errorf("%s, then %s: %q, want %q", first, text, s.Env, want)
			}
		}
	}
}

// A list's items are checked as soon as they are set.
func TestListsAreChecked(t *testing.T) {
	for _, text := range []string{"noon", "[noon]", "[timeout, noon]"} {
		err := set(t, New(Run), "tty: true\ndump-on: "+text)
		if err == nil || !strings.HasPrefix(err.Error(), "f.yaml:2: dump-on ") || !strings.Contains(err.Error(), `"noon"`) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// An error repeats the beginning of a value: a file of another kind can be a value as a whole.
func TestErrorsAreShort(t *testing.T) {
	_, err := Parse("f.yaml", []byte(strings.Repeat("root:x:0:0:root:/root:/bin/bash\n", 1000)))
	if err == nil || len(err.Error()) > 300 || !strings.Contains(err.Error(), `"root:x:0:0:root`) {
		t.Errorf("%.1000v", err)
	}
}

// A document that says nothing is none's mistake.
// Who sits at a terminal has no deadline that was not asked for, wherever one can be asked for.
func TestAtTerminal(t *testing.T) {
	for name, tc := range map[string]struct {
		env  []string
		flag string
		want time.Duration
	}{
		"unsaid":         {want: 365 * 24 * time.Hour},
		"flag":           {flag: "1m", want: time.Minute},
		"the default":    {flag: run.DefaultTimeout.String(), want: run.DefaultTimeout},
		"an environment": {env: []string{EnvPrefix + "TIMEOUT=2m"}, want: 2 * time.Minute},
	} {
		s := New(Run)
		if tc.flag != "" {
			if err := s.Lookup("timeout").Set("--timeout", tc.flag); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Load(nil, tc.env); err != nil {
			t.Fatal(err)
		}
		s.AtTerminal()
		if err := s.Check(); err != nil || s.Timeout != tc.want {
			t.Errorf("%s: %v, %v; want %v", name, s.Timeout, err, tc.want)
		}
	}
}

func TestEmptyDocuments(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing yet\n", "---\n", "---\n...\n", "~", "{}"} {
		d, err := Parse("f.yaml", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if d.Root != nil && len(d.Root.Content) > 0 {
			t.Errorf("%q: %v", text, d.Root.Content)
		}
	}
}

// No file makes Load panic; what is wrong with one is an error that names it.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"memory: 64M", "a: &x [*x]", "? [a]\n: b", "---\n---\n", "%YAML 1.2\n---\n", "{a: b",
		strings.Repeat("[", 20000)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Parse("f.yaml", []byte(text))
		if err != nil {
			if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "f.yaml") {
				t.Fatal(err)
			}
			return
		}
		if d.Root == nil {
			return
		}
		for key, node := range Pairs(d.Root) {
			_ = New(Run).SetNode(d, key, node) // wrong or not, it returns
		}
	})
}
