package bed

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The console is taken apart by command, whatever its output ends with.
func TestRead(t *testing.T) {
	var first, second, console bytes.Buffer
	commands := []*Command{{Output: &first, Code: -1}, {Output: &second, Code: -1}}
	text := "booting\r\n\x01bed: +\r\none\r\n\x01bed: alive\r\nt\x01bed: alive\r\nwo\x01bed: 3\r\nbetween\r\n\x01bed: " +
		"+\r\nthree\r\n\x01bed: 0\r\nend\r\n"
	if err := read(bufio.NewReader(strings.NewReader(text)), commands, &console, func() {}); err != nil {
		t.Fatal(err)
	}
	if first.String() != "one\ntwo" || second.String() != "three\n" || console.String() != "booting\nbetween\nend\n" ||
		commands[0].Code != 3 || commands[1].Code != 0 {
		t.Errorf("%q, %d, %q, %d, console %q", first.String(), commands[0].Code, second.String(),
			commands[1].Code, console.String())
	}
}

// A program that takes the emulated Linux down with it has no code, and neither has the next one.
func TestReadCutShort(t *testing.T) {
	var out bytes.Buffer
	commands := []*Command{{Output: &out, Code: -1}, {Output: &out, Code: -1}}
	if err := read(bufio.NewReader(strings.NewReader("\x01bed: +\none\nKernel panic")), commands,
		&out, func() {}); err != nil {
		t.Fatal(err)
	}
	if commands[0].Code != -1 || commands[1].Code != -1 || out.String() != "one\nKernel panic" {
		t.Errorf("%d, %d, %q", commands[0].Code, commands[1].Code, out.String())
	}
	for _, text := range []string{"\x01bed: 0\n", "\x01bed: +\n\x01bed: killed\n",
		"\x01bed: +\n\x01bed: +\n\x01bed: +\n"} {
		if err := read(bufio.NewReader(strings.NewReader(text)), commands, &out, func() {}); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

// The newest version of a package is found, by its numbers, and no other package's.
func TestFind(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if _, err := Find("linux-6.1"); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	cache, err := Cache()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"linux-6.1_6.1.9-1", "linux-6.1_6.1.90-1", "linux-6.1_6.1.90-1+b1",
		"linux-6.12_6.12.100-1", "tmp.abc", "lock"} {
		if err := os.MkdirAll(filepath.Join(cache, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if dir, err := Find("linux-6.1"); err != nil || dir != filepath.Join(cache, "linux-6.1_6.1.90-1+b1") {
		t.Error(dir, err)
	}
	if _, err := Find("linux"); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
}
