package control

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// The documentation has a request of each verb, and all of them are right.
func TestDocumentedRequests(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "control.md"))
	if err != nil {
		t.Fatal(err)
	}
	verbs := map[string]bool{}
	for _, r := range regexp.MustCompile(`(?m)\{"ktstr_vmm_control":1,"verb":"(\w+)".*?\}`).FindAllSubmatch(page, -1) {
		verbs[string(r[1])] = true
		if _, err := parse(r[0]); err != nil {
			t.Errorf("%s: %v", r[0], err)
		}
	}
	if got, want := slices.Sorted(maps.Keys(verbs)), slices.Sorted(maps.Keys(requests)); !slices.Equal(got, want) {
		t.Errorf("documented: %q, there are %q", got, want)
	}
}

// FuzzRequest: whatever a client sends is a request or an error with a code.
func FuzzRequest(f *testing.F) {
	for _, text := range []string{"", "{}", `{"ktstr_vmm_control":1,"verb":"status"}`,
		`{"ktstr_vmm_control":1,"verb":"signal","slot":0,"value":1}`,
		`{"ktstr_vmm_control":1,"verb":"tail","types":["STIM","0x00000001"],"from":1,"follow":true}`,
		`{"ktstr_vmm_control":2,"verb":"tail"}`, `{"ktstr_vmm_control":1,"verb":"stop","now":true} {`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parse(text)
		var e *Error
		if (r == nil) != (err != nil) || err != nil && (!errors.As(err, &e) || e.Code == "" || e.Message == "") {
			t.Fatalf("%q: %v, %v", text, r, err)
		}
		if tail, ok := r.(*tailRequest); ok {
			_, _, _ = tail.types()
		}
	})
}
