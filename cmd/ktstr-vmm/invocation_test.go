package main

import (
	"os"
	"slices"
	"testing"
)

// A report tells how the program was called, and no password of a URL, in whatever form that is.
func TestInvocationHasNoPasswords(t *testing.T) {
	before := os.Args
	defer func() { os.Args = before }()
	os.Args = []string{"ktstr-vmm",
		"https://user:secret@host/a@b", "--metrics-push=http://user:se@cr@et@host:1",
		"http://secret@host", "http://:secret@host",
		"sh -c 'curl https://u:secret@a/ http://u:secret@b'", "http://a/,http://u:secret@b", "http://[::1]/?mail=a@b",
		"http://host?mail=a@b", "http://host#a@b", "a@b", "\xff://u:secret@\xff"}
	t.Setenv("KTSTR_VMM_METRICS_PUSH", "http://user:se@cret@host")
	t.Setenv("SECRET", "secret")
	got := invocation()
	want := []string{"ktstr-vmm",
		"https://…@host/a@b", "--metrics-push=http://…@host:1",
		"http://…@host", "http://…@host",
		"sh -c 'curl https://…@a/ http://…@b'", "http://a/,http://…@b", "http://[::1]/?mail=a@b",
		"http://host?mail=a@b", "http://host#a@b", "a@b", "\xff://…@\xff"}
	if !slices.Equal(got.Args, want) {
		t.Errorf("%q", got.Args)
	}
	if !slices.Contains(got.Env, "KTSTR_VMM_METRICS_PUSH=http://…@host") || slices.Contains(got.Env, "SECRET=secret") {
		t.Errorf("%q", got.Env)
	}
	if os.Args[1] != "https://user:secret@host/a@b" {
		t.Errorf("the program's own arguments have changed: %q", os.Args)
	}
}
