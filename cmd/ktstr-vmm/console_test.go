package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/report"
)

// writeBytes gives text to the console as a guest's serial port does.
func writeBytes(t *testing.T, c *console, text string) {
	t.Helper()
	w := c.writer()
	for i := range len(text) {
		if _, err := w.Write([]byte{text[i]}); err != nil {
			t.Fatal(err)
		}
	}
}

// What a guest writes without end does not fill the disk, and where the file stops it says why, once.
func TestConsoleFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	o := options{Settings: &config.Settings{Console: path, ConsoleLimit: 1000}}
	c, err := o.openConsole(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789", 300)
	writeBytes(t, c, text)
	if err := c.close(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "--console-limit 1000 was reached: 2000 bytes were left out") {
		t.Error(err)
	}
	got, err := os.ReadFile(path)
	if want := text[:1000] + "\n[ktstr-vmm: --console-limit 1000 is reached, the rest is left out]\n"; err != nil ||
		string(got) != want {
		t.Errorf("%q, %v", got, err)
	}

	if c, err = o.openConsole(nil, nil); err != nil {
		t.Fatal(err)
	}
	writeBytes(t, c, text[:1000]) // all that there is room for
	if err := c.close(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != text[:1000] {
		t.Errorf("%q, %v", got, err)
	}
}

// A terminal acts on nothing that a guest writes to its console, unless that was asked for by --console -.
func TestConsoleIsVisibleUnlessRaw(t *testing.T) {
	const text = "boot\r\n\x1b[2J\x00ü\u202e\xff\ttab\rx\xc3"
	var stdout, stderr bytes.Buffer
	o := options{Settings: &config.Settings{Console: "-", ConsoleLimit: 1 << 20, Verbose: true}}
	out, errOut := report.NewStream(&stdout), report.NewStream(&stderr)
	c, err := o.openConsole(out, errOut)
	if err != nil {
		t.Fatal(err)
	}
	writeBytes(t, c, text)
	if err := c.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*report.Stream{out, errOut} {
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if stdout.String() != text {
		t.Errorf("--console -: %q", stdout.String())
	}
	if want := "boot\n\\x1b[2J\\x00ü\\u202e\ufffd\ttab\\rx\ufffd"; stderr.String() != want {
		t.Errorf("--verbose: %q, want %q", stderr.String(), want)
	}
}

// The umask says who may read a report and a console's file.
func TestFilesKeepTheUmask(t *testing.T) {
	dir := t.TempDir()
	for mask, want := range map[int]os.FileMode{0o077: 0o600, 0o027: 0o640, 0o022: 0o644} {
		path := filepath.Join(dir, fmt.Sprintf("report-%o", mask))
		old := syscall.Umask(mask)
		r, err := openOutput(path)
		o := options{Settings: &config.Settings{Console: path + ".console"}}
		c, consoleErr := o.openConsole(nil, nil)
		syscall.Umask(old)
		if err != nil || consoleErr != nil {
			t.Fatal(err, consoleErr)
		}
		if err := r.commit(); err != nil {
			t.Fatal(err)
		}
		if err := c.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{path, path + ".console"} {
			info, err := os.Stat(path)
			if err != nil || info.Mode() != want {
				t.Errorf("umask %03o: %s is %v, want %v (%v)", mask, path, info.Mode(), want, err)
			}
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
