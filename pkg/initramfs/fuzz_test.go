package initramfs_test

import (
	"bytes"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/initramfs"
)

// FuzzBase: no base panics or keeps the archive waiting; above one that is taken everything has its place, or is
// refused.
func FuzzBase(f *testing.F) {
	f.Add(newc(f, dir("usr"), dir("usr/bin"), link("bin", "usr/bin"), file("bin/sh", "text")))
	for _, name := range packedBases {
		f.Add(packed(f, name))
	}
	f.Fuzz(func(t *testing.T, base []byte) {
		a := initramfs.New()
		a.AddText("/bin/file", "", 0o644)
		if err := a.SetBase(bytes.NewReader(base), uint64(len(base))); err != nil {
			return
		}
		if size := a.Size(); size != 0 && size < uint64(len(base)) {
			t.Fatalf("%d bytes with a base of %d", size, len(base))
		}
	})
}

// FuzzELFDependencies: no ELF file and no cache of a loader's panics, or names more than it has.
func FuzzELFDependencies(f *testing.F) {
	f.Add(program{interp: "/lib/ld.so", needed: []string{"liba.so", "libb.so"}, runpath: "$ORIGIN/lib"}.elf())
	f.Add(program{interp: "/lib/ld-musl-aarch64.so.1", machine: 183, rpath: "/x:/y"}.elf())
	f.Add(program{soname: "liba.so.1", is32: true}.elf())
	f.Add(loaderCache(map[string]string{"liba.so": "/opt/liba.so"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		initramfs.ParseCache(b)
		interp, needed, err := initramfs.NeededBy(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, name := range append(needed, interp) {
			if !bytes.Contains(b, []byte(name)) {
				t.Fatalf("%q is not in the file", name)
			}
		}
	})
}
