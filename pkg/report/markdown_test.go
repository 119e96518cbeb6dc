package report

import "testing"

// A text stays what it is, also where it begins a line.
func TestMarkdown(t *testing.T) {
	for text, want := range map[string]string{
		"plain, 1.5 s-long": "plain, 1.5 s-long",
		"a_b* <c>|`d`\n#":   "a\\_b\\* \\<c\\>\\|\\`d\\`\\\\n\\#",
		"- item":            "\\- item",
		"---":               "\\---",
		"12. item":          "12\\. item",
		"1.":                "1\\.",
		"12.5 s":            "12.5 s",
		".5":                ".5",
		"    code":          "code",
		"2026-11-26":        "2026-11-26",
	} {
		if got := Markdown(text); got != want {
			t.Errorf("%q: %s; want %s", text, got, want)
		}
	}
}
