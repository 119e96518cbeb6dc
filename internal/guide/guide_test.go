package guide

import "testing"

// Times differ from run to run; codes and counts are what a page is about.
func TestShows(t *testing.T) {
	for _, c := range []struct {
		shown, printed string
		want           bool
	}{
		{"first: 8 passed in 2.93s\n", "first: 8 passed in 12.1s\n", true},
		{"before, 2.93 s; grace 8s\n", "before, 0.1 s; grace 10s\n", true},
		{"  duration    8ms\n", "  duration    1.024s\n", true},
		{"first: 8 passed in 2.93s\n", "first: 3 passed in 2.93s\n", false},
		{"exit code 1\n", "exit code 125\n", false},
		{"code 0, 2 shards\n", "code 0, 4 shards\n", false},
		{"fixed:\n  a\n", "slower:\n  a: duration was 1, is 2\nfixed:\n  a\n", true},
		{"fixed:\n  a\n", "slower:\n  a: duration was 1, is 2\nfixed:\n  b\n", false},
		{"a\n…\nb … c\n", "a\n1\n2\nb 1 c\n", true},
	} {
		if got := Shows(c.shown, c.printed); got != c.want {
			t.Errorf("a page with\n%sshows\n%s: %v", c.shown, c.printed, got)
		}
	}
}

// Commands are followed by what they print, or print nothing.
func TestSteps(t *testing.T) {
	steps := Steps("text\n```sh\ntrue\n```\n\n```\nout\n```\n```\nnone\n```\n```sh\nls\n```\n```\n$ id\n0\n```\n")
	want := []Step{{"true\n", "out\n"}, {"ls\n", ""}}
	if len(steps) != 2 || steps[0] != want[0] || steps[1] != want[1] {
		t.Errorf("%q, want %q", steps, want)
	}
}

// A step fails with any of its commands, unless the page says what comes of it.
func TestShell(t *testing.T) {
	if out, err := shell("false\necho on\n").CombinedOutput(); err == nil || len(out) > 0 {
		t.Errorf("%v, %q", err, out)
	}
	if out, err := shell("false || echo $?\n").CombinedOutput(); err != nil || string(out) != "1\n" {
		t.Errorf("%v, %q", err, out)
	}
}
