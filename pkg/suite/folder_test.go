package suite

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Any name has a folder of its own that is one plain, short element of a path.
func TestFolderNames(t *testing.T) {
	for name, want := range map[string]string{
		"boots[arch=x86_64,cpus=1]": "boots[arch=x86_64,cpus=1]",
		"sh -c 'a/b'":               "sh%20-c%20%27a%2Fb%27",
		"..":                        "%2E.",
		"%20":                       "%2520",
	} {
		if got := folderName(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringN(100, 300, -1))
		a, b := text.Draw(t, "a"), text.Draw(t, "b")
		f := folderName(a)
		if len(f) > maxFolderName || strings.ContainsAny(f, "/\x00\\:*?\"<>|\r\n ") || strings.HasPrefix(f, ".") {
			t.Fatalf("%q: %q", a, f)
		}
		if a != b && f == folderName(b) {
			t.Fatalf("%q and %q: %q", a, b, f)
		}
	})
}
