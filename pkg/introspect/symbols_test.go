package introspect_test

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/kerneltest"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
)

// Functions are named by the kernel's own table in memory, its vmlinux and its System.map, wherever it runs. What is in
// no function has no name.
func TestNames(t *testing.T) {
	for _, arch := range architectures {
		for name, change := range map[string]func(*kerneltest.Kernel){
			"in its place": func(*kerneltest.Kernel) {},
			"Linux 6.12":   func(k *kerneltest.Kernel) { k.Order = kerneltest.Linux612 },
			"moved":        func(k *kerneltest.Kernel) { k.Moved, k.Slid = 2<<20, 8<<20 },
		} {
			t.Run(arch+"/"+name, func(t *testing.T) {
				kernel := running(arch)
				change(&kernel)
				mem := kernel.Memory(t)
				vmlinux, systemMap := kernel.Vmlinux(t), kernel.SystemMap()
				for source, read := range map[string]func() (*introspect.Kernel, error){
					"memory":  func() (*introspect.Kernel, error) { return introspect.ReadMemory(t.Context(), mem, arch) },
					"vmlinux": func() (*introspect.Kernel, error) { return introspect.ReadVmlinux(bytes.NewReader(vmlinux)) },
					"map":     func() (*introspect.Kernel, error) { return introspect.ReadSystemMap(bytes.NewReader(systemMap)) },
				} {
					k, err := read()
					if err != nil {
						t.Fatal(source, err)
					}
					v, err := k.Open(mem)
					if err != nil {
						t.Fatal(source, err)
					}
					names := v.Symbols()
					for address, want := range map[uint64]string{
						kernel.Address(0):       "_text+0x0/0x1", // the first of two
						kernel.Address(27):      "function_bb+0x0/0x1",
						kernel.Address(599):     "", // the last, of which nobody knows how long it is
						kernel.Address(1 << 20): "",
						kernel.Address(0) - 1:   "",
						0x401000:                "", // user space
						0:                       "",
						^uint64(0):              "",
					} {
						if got := names.Name(address); got != want {
							t.Errorf("%s: 0x%x is %q, want %q", source, address, got, want)
						}
					}
				}
			})
		}
	}
	if got := (introspect.Symbols{}).Name(1); got != "" {
		t.Errorf("no symbols name %q", got)
	}
}

// systemMap is one with all that is needed of a kernel, and with lines of its own.
func systemMap(lines ...string) string {
	text := ""
	for i, name := range []string{"linux_banner", "runqueues", "__per_cpu_offset", "init_top_pgt", "phys_base"} {
		text += fmt.Sprintf("%016x D %s\n", 0xffffffff82000000+uint64(i), name)
	}
	return "ffffffff81000000 T _text\n" + text + strings.Join(lines, "\n") + "\n"
}

// A System.map names functions in order of their addresses, and nothing behind their end.
func TestSystemMap(t *testing.T) {
	k, err := introspect.ReadSystemMap(strings.NewReader(systemMap("ffffffff81000400 t schedule",
		"ffffffff81000100 T cpu_idle", "ffffffff81000100 W alias", "ffffffff81000500 T _etext",
		"ffffffff81000600 T end_of_it")))
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[uint64]string{
		0xffffffff8100001c: "_text+0x1c/0x100",
		0xffffffff81000100: "cpu_idle+0x0/0x300",
		0xffffffff8100041c: "schedule+0x1c/0x100",
		0xffffffff81000501: "",
		0xffffffff81000600: "",
	} {
		if got := k.Symbols().Name(address); got != want {
			t.Errorf("0x%x is %q, want %q", address, got, want)
		}
	}
	for name, text := range map[string]string{
		"Debian's":   "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n",
		"none":       "",
		"no address": systemMap("schedule"),
		"a long one": systemMap("ffffffff81000500 T " + strings.Repeat("x", 1<<20)),
		"an image":   "MZ\x00\x00\n\n",
	} {
		if k, err := introspect.ReadSystemMap(strings.NewReader(text)); k != nil || !errors.Is(err, introspect.ErrSymbols) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
}

// A vmlinux without types names functions all the same.
func TestVmlinuxWithoutTypes(t *testing.T) {
	kernel := running("x86_64")
	kernel.NoTypes = true
	k, err := introspect.ReadVmlinux(bytes.NewReader(kernel.Vmlinux(t)))
	if !errors.Is(err, introspect.ErrTypes) {
		t.Fatal(err)
	}
	v, err := k.Open(kernel.Memory(t))
	if err != nil {
		t.Fatal(err)
	}
	if cpus, err := v.Look(nil, 3); len(cpus) > 0 || !errors.Is(err, introspect.ErrTypes) {
		t.Errorf("%v, %v", cpus, err)
	}
	if got := v.Symbols().Name(kernel.Address(27)); got != "function_bb+0x0/0x1" {
		t.Errorf("%q", got)
	}
}

// A vmlinux whose symbols all have the same long name, or are packed, takes no more memory than it has bytes, about.
func TestVmlinuxTakesLittle(t *testing.T) {
	kernel := running("x86_64")
	good := kernel.Vmlinux(t)
	const sections, table, names = 64, 3, 4 // see kerneltest
	header := func(file []byte, section int) []byte { return file[sections+64*section:] }
	le := binary.LittleEndian
	long := bytes.Clone(good)
	at := uint64(len(long))
	for range 1 << 10 {
		long = append(long, le.AppendUint64(le.AppendUint64(le.AppendUint64(nil, 1|5<<48), kernel.Address(1)), 0)...)
	}
	le.PutUint64(header(long, table)[24:], at)
	le.PutUint64(header(long, table)[32:], uint64(len(long))-at)
	at = uint64(len(long))
	long = append(long, append(bytes.Repeat([]byte("x"), 256<<10), 0)...)
	le.PutUint64(header(long, names)[24:], at)
	le.PutUint64(header(long, names)[32:], uint64(len(long))-at)

	packed := bytes.Clone(good)
	at = uint64(len(packed))
	packed = le.AppendUint64(packed, uint64(elf.COMPRESS_ZLIB)) // Chdr64: type, size, alignment
	packed = le.AppendUint64(le.AppendUint64(packed, 48<<20), 8)
	var zeros bytes.Buffer
	z := zlib.NewWriter(&zeros)
	_, _ = z.Write(make([]byte, 48<<20)) // a Buffer takes all
	_ = z.Close()
	packed = append(packed, zeros.Bytes()...)
	le.PutUint64(header(packed, table)[8:], uint64(elf.SHF_COMPRESSED))
	le.PutUint64(header(packed, table)[24:], at)
	le.PutUint64(header(packed, table)[32:], uint64(len(packed))-at)

	for name, file := range map[string][]byte{"long names": long, "packed": packed} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := introspect.ReadVmlinux(bytes.NewReader(file))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, introspect.ErrSymbols) {
			t.Errorf("%s: %v", name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
			t.Errorf("%s: %d bytes of memory for a file of %d", name, took, len(file))
		}
	}
}

// Whatever a System.map says, what is made of it ends.
func FuzzSystemMap(f *testing.F) {
	f.Add(systemMap("ffffffff81000400 t schedule", "ffffffff81000500 T _etext"), uint64(0xffffffff81000401))
	f.Add(systemMap("0 T x", "ffffffffffffffff T y", "1 W x"), ^uint64(0))
	f.Add("ffffffffffffffff B The real System.map", uint64(1))
	f.Fuzz(func(t *testing.T, text string, address uint64) {
		k, err := introspect.ReadSystemMap(strings.NewReader(text))
		if err != nil {
			return
		}
		if name := k.Symbols().Name(address); len(name) > 600 {
			t.Errorf("a name of %d bytes", len(name))
		}
	})
}
