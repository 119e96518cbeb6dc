package initramfs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

func dir(name string) cpio.Record          { return cpio.Directory(name, 0o755) }
func link(name, target string) cpio.Record { return cpio.Symlink(name, target) }
func file(name, text string) cpio.Record   { return cpio.StaticFile(name, text, 0o644) }

// newc is an archive as another program writes it.
func newc(t testing.TB, records ...cpio.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, r := range append(records, cpio.TrailerRecord) {
		// A writer for each: one for all of them leaves out what has a name for the second time.
		if err := cpio.Newc.Writer(&b).WriteRecord(r); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// packedBases are merged as newc(dir("usr"), dir("usr/bin"), dir("usr/lib64"), link("bin", "usr/bin"),
// link("lib64", "usr/lib64")) has it, packed by the tools of these names: xz --check=crc32, lz4 -l, gzip, zstd.
var packedBases = []string{"merged.cpio.gz", "merged.cpio.xz", "merged.cpio.zst", "merged.cpio.lz4"}

func packed(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func merged(t testing.TB) []byte {
	return newc(t, dir("usr"), dir("usr/bin"), dir("usr/lib64"), link("bin", "usr/bin"), link("lib64", "usr/lib64"))
}

// above returns what lies above a base.
func above(t *testing.T, base []byte, a *initramfs.Archive) map[string]cpio.Record {
	t.Helper()
	if err := a.SetBase(bytes.NewReader(base), uint64(len(base))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if n, err := a.WriteTo(&out); err != nil || uint64(n) != a.Size() || !bytes.HasPrefix(out.Bytes(), base) {
		t.Fatalf("%d bytes of %d: %v", n, a.Size(), err)
	}
	rest := out.Bytes()[(len(base)+3)&^3:]
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(bytes.TrimLeft(rest, "\x00"))))
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]cpio.Record{}
	for _, r := range records {
		byName[r.Name] = r
	}
	return byName
}

// Folders of the base that are links stay links, whatever the base is packed with and wherever in it they are.
func TestBaseLinksStay(t *testing.T) {
	plain := merged(t)
	early := newc(t, dir("kernel"), file("kernel/microcode", strings.Repeat("x", 100<<10)))
	var zipped, framed bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(plain)
	z.Close()
	s, err := zstd.NewWriter(&framed)
	if err != nil {
		t.Fatal(err)
	}
	s.Write(plain)
	s.Close()
	bases := map[string][]byte{
		"plain":              plain,
		"early archive":      append(bytes.Clone(early), plain...),
		"early, then gzip":   append(append(bytes.Clone(early), 0, 0, 0, 0), zipped.Bytes()...),
		"gzip, gzip":         append(gzipped(t, early), zipped.Bytes()...),
		"zstd, plain":        append(pad4(framed.Bytes()), early...),
		"gzip, zeros, plain": append(pad4(gzipped(t, early)), plain...),
	}
	for _, name := range packedBases {
		bases[name] = packed(t, name)
		bases[name+", gzip"] = append(append(packed(t, name), 0, 0, 0, 0, 0), gzipped(t, early)...)
	}
	for name, base := range bases {
		t.Run(name, func(t *testing.T) {
			a := initramfs.New()
			a.AddText("/bin/tool", "tool", 0o755)
			a.AddText("/lib64/ld.so", "loader", 0o755)
			records := above(t, base, a)
			for _, gone := range []string{"bin", "lib64", "usr", "usr/bin", "bin/tool"} {
				if r, ok := records[gone]; ok {
					t.Errorf("%s is made: %o", gone, r.Mode)
				}
			}
			if content(t, records["usr/bin/tool"]) != "tool" || content(t, records["usr/lib64/ld.so"]) != "loader" {
				t.Errorf("%v", records)
			}
		})
	}
}

func pad4(b []byte) []byte { return append(bytes.Clone(b), make([]byte, -len(b)&3)...) }

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// What a kernel makes of a base's entries decides: later ones replace earlier ones, links are followed.
func TestBaseIsReadAsTheKernelDoes(t *testing.T) {
	for name, tc := range map[string]struct {
		base []cpio.Record
		want string // where /a/b/file comes to lie
	}{
		"chain":             {[]cpio.Record{dir("z"), dir("z/b"), link("y", "/z"), link("a", "./y")}, "z/b/file"},
		"up and down":       {[]cpio.Record{dir("z"), dir("z/c"), link("z/b", "../../z/c"), link("a", "z")}, "z/c/file"},
		"link, then folder": {[]cpio.Record{link("a", "z"), dir("a")}, "a/b/file"},
		"link, then file":   {[]cpio.Record{link("a", "z"), file("a", "")}, "a/b/file"},
		"folder, then link": {[]cpio.Record{dir("a"), link("a", "z")}, "z/b/file"},
		"full folder":       {[]cpio.Record{dir("a"), file("a/x", ""), link("a", "z")}, "a/b/file"},
		"nowhere":           {[]cpio.Record{link("a", "none/there")}, "none/there/b/file"},
		"without a parent":  {[]cpio.Record{link("x/a", "z"), link("a", "x/a")}, "x/a/b/file"},
		"slash and dot":     {[]cpio.Record{link("./a", "z")}, "z/b/file"},
	} {
		a := initramfs.New()
		a.AddText("/a/b/file", "here", 0o644)
		records := above(t, newc(t, tc.base...), a)
		if r, ok := records[tc.want]; !ok || content(t, r) != "here" {
			t.Errorf("%s: %v", name, records)
		}
	}
}

// A file of the base with two names is not written into where one of them is replaced.
func TestBaseHardLinksAreNotWrittenInto(t *testing.T) {
	one, two := file("one", ""), file("two", "shared")
	one.NLink, two.NLink, one.Ino, two.Ino = 2, 2, 7, 7
	a := initramfs.New()
	a.AddText("/two", "mine", 0o644)
	base := newc(t, one, two)
	if err := a.SetBase(bytes.NewReader(base), uint64(len(base))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := a.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes()[len(base):])))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []uint64
	for _, r := range records {
		if r.Name == "two" {
			kinds = append(kinds, r.Mode&cpio.S_IFMT)
		}
	}
	if len(kinds) != 2 || kinds[0] != cpio.S_IFLNK || kinds[1] != cpio.S_IFREG {
		t.Errorf("%o: a link unties the name, then comes the file", kinds)
	}
}

// A base that can't be read is refused, and says why; so is one that takes without end.
func TestBaseRefused(t *testing.T) {
	loop := newc(t, link("a", "b"), link("b", "a"))
	plain := merged(t)
	for name, tc := range map[string]struct {
		base []byte
		says string
	}{
		"text":         {[]byte("#!/bin/sh\n"), "neither a cpio archive nor packed"},
		"old cpio":     {[]byte("070707" + strings.Repeat("0", 109)), "cpio -H newc"},
		"cut":          {plain[:300], "unexpected EOF"},
		"cut gzip":     {packed(t, "merged.cpio.gz")[:80], "gzip: "},
		"cut xz":       {packed(t, "merged.cpio.xz")[:80], "xz: "},
		"cut zstd":     {packed(t, "merged.cpio.zst")[:80], "zstd: "},
		"cut lz4":      {packed(t, "merged.cpio.lz4")[:80], "lz4: "},
		"bzip2":        {[]byte("BZh91AY&SY"), "packed with bzip2; gzip, xz, zstd and lz4"},
		"gzip of text": {gzipped(t, []byte("text")), "a byte 0x74 where an archive begins"},
		"parts":        {bytes.Repeat(gzipped(t, nil), 2000), "more than 1024 compressed parts"},
	} {
		err := initramfs.New().SetBase(bytes.NewReader(tc.base), uint64(len(tc.base)))
		if !errors.Is(err, initramfs.ErrBase) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
	for _, size := range []int64{1<<20 - 1, 1 << 20, 1<<20 + 1} {
		bomb := gzipped(t, make([]byte, 1<<20))
		bomb = append(bytes.Clone(bomb), bomb...)
		err := initramfs.ReadBase(bytes.NewReader(bomb), int64(len(bomb)), size)
		if !errors.Is(err, initramfs.ErrBase) || !strings.Contains(err.Error(), "unpacks to more") {
			t.Errorf("2 MiB unpacked, at most %d: %v", size, err)
		}
	}
	a := initramfs.New()
	a.AddText("/a/file", "", 0o644)
	if err := a.SetBase(bytes.NewReader(loop), uint64(len(loop))); err != nil {
		t.Fatal(err)
	}
	if n, err := a.WriteTo(&bytes.Buffer{}); n != 0 || !errors.Is(err, initramfs.ErrFile) ||
		!strings.Contains(err.Error(), "/a/file") {
		t.Errorf("a file behind links that lead to each other: %d, %v", n, err)
	}
}

// A base that ends early when it is written is named.
func TestBaseThatShrinks(t *testing.T) {
	base := merged(t)
	path := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(path, base, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := initramfs.New()
	if err := a.SetBase(f, uint64(len(base))); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteTo(&bytes.Buffer{}); !errors.Is(err, initramfs.ErrBase) ||
		!strings.Contains(err.Error(), "100 of") {
		t.Error(err)
	}
}

// lz4 of Linux's takes what follows a base for a block, unless it is zero.
func TestZerosFollowLZ4(t *testing.T) {
	base := packed(t, "merged.cpio.lz4")
	a := initramfs.New()
	if err := a.SetBase(bytes.NewReader(base), uint64(len(base))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := a.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	if rest := out.Bytes()[len(base):]; !bytes.HasPrefix(rest, make([]byte, 8)) || uint64(out.Len()) != a.Size() {
		t.Errorf("%q follows it", rest[:16])
	}
}
